package kubeapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"

	"github.com/usherproxy/usher/internal/guard"
)

// Object is an object in which all replicas of Usher keep something that they have to agree on. An administrator creates
// it empty, so that the rights to get and to update this one object suffice.
type Object struct {
	Client   rest.Interface
	Log      *slog.Logger
	Kind     string // such as ConfigMap
	At       types.NamespacedName
	Manifest string // the page of docs with the empty object and the rights
}

// ParseName parses NAMESPACE/NAME. It reports false for anything else.
func ParseName(text string) (types.NamespacedName, bool) {
	namespace, name, ok := strings.Cut(text, "/")
	return types.NamespacedName{Namespace: namespace, Name: name}, ok && namespace != "" && name != "" && !strings.Contains(name, "/")
}

var errOtherObject = errors.New("the answer is not the object that was asked for")

// Update reads the object, and writes what change has made of it if change returns true. It calls change again if another
// replica was faster, and not at all if the object cannot be read.
func Update[T any, P interface {
	*T
	runtime.Object
}](ctx context.Context, o Object, change func(P) bool) error {
	try := func() error {
		content := P(new(T))
		if err := o.request(o.Client.Get()).Do(ctx).Into(content); err != nil {
			return err
		}
		if found, err := meta.Accessor(content); err != nil || found.GetName() != o.At.Name { // {} and null can be decoded, too
			return errors.Join(errOtherObject, err)
		}
		if !change(content) {
			return nil
		}
		return o.request(o.Client.Put()).Body(content).Do(ctx).Error()
	}
	var err error
	_ = retry.RetryOnConflict(retry.DefaultBackoff, func() error { // it would return nil for the error of a context
		err = guard.Run(o.Log, "kubernetes", try)
		return err
	})
	return err
}

func (o Object) request(r *rest.Request) *rest.Request {
	return r.Namespace(o.At.Namespace).Resource(strings.ToLower(o.Kind) + "s").Name(o.At.Name).MaxRetries(0)
}

// String names the object in problems.
func (o Object) String() string { return fmt.Sprintf("Kubernetes %s %s", o.Kind, o.At) }

// Explain returns why Update failed, and what to do.
func (o Object) Explain(err error) string {
	if apierrors.IsNotFound(err) {
		return fmt.Sprintf("it does not exist; create an empty one (%s)", o.Manifest)
	}
	return Explain(err, fmt.Sprintf("get and update on this %s (%s)", o.Kind, o.Manifest))
}
