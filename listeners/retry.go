package listeners

import (
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/usherproxy/usher/internal/gateway"
)

// retryPolicy gives the retries of a router's destination, or nil where it has
// no setting for them.
func retryPolicy(d *gateway.RouteDestination) *routev3.RetryPolicy {
	if d.NumRetries == 0 && !d.RetryOnConnectFailure && len(d.RetryOn) == 0 && len(d.RetryOnStatusCodes) == 0 {
		return nil
	}
	on := slices.Clone(d.RetryOn)
	if d.RetryOnConnectFailure && !slices.Contains(on, "connect-failure") {
		on = append(on, "connect-failure")
	}
	if len(d.RetryOnStatusCodes) > 0 {
		on = append(on, "retriable-status-codes")
	}
	return &routev3.RetryPolicy{
		RetryOn:              strings.Join(on, ","),
		NumRetries:           unlessZero(d.NumRetries),
		RetriableStatusCodes: d.RetryOnStatusCodes,
	}
}
