package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/spf13/pflag"

	"github.com/usherproxy/usher/internal/admission"
)

// webhookOptions are the flags of the admission webhook.
type webhookOptions struct {
	addr                   string
	change                 admission.Change
	terminationGracePeriod time.Duration
}

// register adds the flags.
func (o *webhookOptions) register(f *pflag.FlagSet) {
	f.StringVar(&o.addr, "webhook-addr", "",
		"Address (host:port) of the admission webhook that changes the pods of gateways when Kubernetes creates them ("+
			admission.Path+"). It has the certificate of --tls-cert. Default: no such port.")
	f.StringVar(&o.change.Container, "webhook-container", "ingress-gateway", "Container with consul-dataplane in the pods that the webhook changes.")
	f.StringArrayVar(&o.change.Args, "webhook-arg", nil,
		"Argument that the webhook appends to those of the container, such as -grpc-port=18002. It can be given more than once.")
	f.StringVar(&o.change.CASecret, "webhook-ca-secret", "",
		"Secret in the pods' namespace whose ca.crt the webhook mounts at "+admission.CAPath+". Default: none.")
	f.DurationVar(&o.terminationGracePeriod, "webhook-termination-grace-period", 0,
		"Least termination grace period of the pods that the webhook changes: whole seconds. 0s leaves it as it is.")
}

// check returns an error if the flags do not fit together.
func (o *webhookOptions) check(tlsCert string) error {
	o.change.TerminationGracePeriodSeconds = int64(o.terminationGracePeriod / time.Second)
	changes := len(o.change.Args) > 0 || o.change.CASecret != "" || o.terminationGracePeriod != 0
	switch {
	case o.terminationGracePeriod < 0 || o.terminationGracePeriod%time.Second != 0:
		return fmt.Errorf("--webhook-termination-grace-period %v: it must be whole seconds, and not negative; use a duration such as 60s", o.terminationGracePeriod)
	case o.addr == "" && changes:
		return errors.New("--webhook-arg, --webhook-ca-secret and --webhook-termination-grace-period are for the webhook; set --webhook-addr, or remove them")
	case o.addr != "" && !changes:
		return fmt.Errorf("--webhook-addr %s: there is nothing that the webhook would change; set --webhook-arg, or remove the flag", o.addr)
	case o.addr != "" && tlsCert == "":
		return fmt.Errorf("--webhook-addr %s: Kubernetes calls webhooks over TLS only; set --tls-cert and --tls-key", o.addr)
	}
	return nil
}

// webhook is the server of the admission webhook, with the port that it has bound.
type webhook struct {
	listener net.Listener
	server   *http.Server
}

// listen binds --webhook-addr; it returns nil without one.
func (o *webhookOptions) listen(ctx context.Context, t transport, log *slog.Logger) (*webhook, error) {
	if o.addr == "" {
		return nil, nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", o.addr)
	if err != nil {
		return nil, fmt.Errorf("--webhook-addr %s: %w", o.addr, err)
	}
	server := newHTTPServer("webhook", admission.NewHandler(admission.Options{Change: o.change, Logger: log}), log)
	return &webhook{t.listener("webhook", l), server}, nil
}

// serve serves until stop is called.
func (w *webhook) serve(l net.Listener) error {
	if err := w.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("webhook server: %w", err)
	}
	return nil
}

// stop ends serve and cuts off open requests.
func (w *webhook) stop() { _ = w.server.Close() }
