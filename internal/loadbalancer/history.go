package loadbalancer

import (
	"context"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// The bounds of what is recalled of a Service before the first answer counts.
const (
	historyTimeout = 5 * time.Second
	historyLimit   = 10
)

// recall gives what a Service was before, the oldest first, as far as the API
// server still has it: that is at least five minutes (kube-apiserver's
// --etcd-compaction-interval). A Usher that is started while the cloud still
// follows a removal learns of it only so, or from the record: what is gone
// leaves no trace in the Service. So does one that is started after something
// else was changed, which may have moved the time of the annotation.
//
// It is best effort: an API server that has other resource versions than numbers
// that count up, or has forgotten them, gives nothing.
func readHistory(ctx context.Context, client rest.Interface, s *corev1.Service) []*corev1.Service {
	ctx, cancel := context.WithTimeout(ctx, historyTimeout)
	defer cancel()
	var past []*corev1.Service
	for range historyLimit {
		s = previousRevision(ctx, client, s)
		if s == nil {
			break
		}
		past = append(past, s)
	}
	slices.Reverse(past)
	return past
}

// before gives what a Service was until it was last written; nil if nobody
// knows.
func previousRevision(ctx context.Context, client rest.Interface, s *corev1.Service) *corev1.Service {
	version, err := strconv.ParseUint(s.ResourceVersion, 10, 64)
	if err != nil || version < 2 {
		return nil
	}
	var list corev1.ServiceList
	err = client.Get().Namespace(s.Namespace).Resource("services").VersionedParams(&metav1.ListOptions{
		FieldSelector:        metav1.ObjectNameField + "=" + s.Name,
		ResourceVersion:      strconv.FormatUint(version-1, 10),
		ResourceVersionMatch: metav1.ResourceVersionMatchExact,
	}, metav1.ParameterCodec).Do(ctx).Into(&list)
	if err != nil {
		return nil
	}
	for i := range list.Items {
		if list.Items[i].Name == s.Name {
			return &list.Items[i]
		}
	}
	return nil
}
