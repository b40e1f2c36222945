package kubeapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
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
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &bug):
		return bug.Error()
	case apierrors.IsForbidden(err):
		return fmt.Sprintf("the API server refuses access: %v; give Usher %s", err, rights)
	case apierrors.IsUnauthorized(err):
		return fmt.Sprintf("the API server does not accept Usher's credentials: %v; check the token of Usher's service account, or --kubeconfig", err)
	case apierrors.IsTooManyRequests(err):
		return fmt.Sprintf("the API server has too many requests: %v; Usher asks again every few seconds; check the server's load, "+
			"and its FlowSchemas for Usher's account", err)
	case errors.Is(err, ErrNoAnswer), errors.Is(err, context.DeadlineExceeded):
		return "the API server does not answer in time; check its health and load, and the network to it"
	case errors.As(err, &certificate):
		return fmt.Sprintf("the certificate of the API server is not valid: %s; check the certificate authority in Usher's service account, "+
			"or in --kubeconfig", whyInvalid(certificate.Err))
	case errors.As(err, &op) && op.Addr != nil:
		return fmt.Sprintf("the API server at %s cannot be reached: %v; check the network to it, and --kubeconfig", op.Addr, op.Err)
	case errors.As(err, &request):
		return fmt.Sprintf("the API server cannot be reached: %v; check the network to it, and --kubeconfig", request.Err)
	}
	return fmt.Sprintf("the API server answers with an error: %v; check its health, and --kubeconfig", err)
}

// whyInvalid returns why a certificate is not valid, without the current time, which would be other words each time.
func whyInvalid(err error) string {
	if invalid := (x509.CertificateInvalidError{}); errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return "it has expired or is not valid yet, or the clock of this machine is wrong"
	}
	return err.Error()
}
