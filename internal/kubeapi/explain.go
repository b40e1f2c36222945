package kubeapi

import (
	"errors"
	"fmt"
	"net"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/usherproxy/usher/internal/guard"
)

// Explain returns in stable words why the API server does not answer, and which rights it may want.
func Explain(err error, rights string) string {
	var op *net.OpError
	var request *url.Error
	var bug *guard.Error
	switch {
	case errors.As(err, &bug):
		return bug.Error()
	case apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err):
		return fmt.Sprintf("the API server refuses access: %v; give Usher %s", err, rights)
	case errors.As(err, &op) && op.Addr != nil:
		return fmt.Sprintf("the API server at %s cannot be reached: %v; check the network to it, and --kubeconfig", op.Addr, op.Err)
	case errors.As(err, &request):
		return fmt.Sprintf("the API server cannot be reached: %v; check the network to it, and --kubeconfig", request.Err)
	}
	return fmt.Sprintf("the API server does not answer: %v", err)
}
