package kubeapi

import (
	"context"
	"encoding/json"
	"fmt"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// Allowed asks the API server whether the client's user has a right
// (https://kubernetes.io/docs/reference/kubernetes-api/authorization-resources/self-subject-access-review-v1/). Every user
// may ask that.
func Allowed(ctx context.Context, client rest.Interface, right authorizationv1.ResourceAttributes) (bool, error) {
	review := authorizationv1.SelfSubjectAccessReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "authorization.k8s.io/v1", Kind: "SelfSubjectAccessReview"},
		Spec:     authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &right},
	}
	body, err := json.Marshal(review)
	if err != nil {
		return false, err
	}
	answer, err := client.Post().AbsPath("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews").
		SetHeader("Content-Type", "application/json").Body(body).MaxRetries(0).DoRaw(ctx)
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(answer, &review); err != nil {
		return false, fmt.Errorf("unexpected answer: %w; check that this is the address of a Kubernetes API server", err)
	}
	return review.Status.Allowed, nil
}
