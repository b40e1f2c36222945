package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/resourcediff"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/xds"
)

// viewOptions name an Envoy, and where what it gets comes from.
type viewOptions struct {
	serve               serveOptions // those flags of usher serve that say where configuration comes from
	id                  gateway.ID
	serviceID, nodeName string
	envoy               envoyVersion
	mode                string
	timeout             time.Duration
}

// register adds the flags.
func (o *viewOptions) register(cmd *cobra.Command) {
	f := cmd.Flags()
	o.serve.registerSource(f)
	f.StringVar(&o.id.Name, "gateway", "", "Service name of the gateway.")
	f.StringVar(&o.serviceID, "service-id", "", "Service ID of the Envoy's instance. Default: that of the gateway's only instance.")
	f.StringVar(&o.nodeName, "node-name", "", "Consul node of the instance. Required if instances on several nodes have the same service ID.")
	f.StringVar(&o.id.Namespace, "namespace", "", "Namespace of the gateway (Consul Enterprise).")
	f.StringVar(&o.id.Partition, "partition", "", "Partition of the gateway (Consul Enterprise).")
	f.Var(&o.envoy, "envoy-version", envoyVersionHelp)
	f.StringVar(&o.mode, "mode", "", "Mode to assume for listeners with the mode auto whose Service in Kubernetes cannot be read: "+
		"off, permissive or strict. Default: what the Service says, or off without a cluster.")
	f.DurationVar(&o.timeout, "timeout", 15*time.Second, "How long to wait until everything is known.")
}

// check returns an error if a flag is missing or out of bounds.
func (o *viewOptions) check() error {
	if err := o.checkBounds(); err != nil {
		return err
	}
	if o.id.Name == "" {
		return errors.New("--gateway is missing: name the gateway")
	}
	return nil
}

// checkBounds returns an error if a flag is out of bounds.
func (o *viewOptions) checkBounds() error {
	if err := o.serve.checkSource(); err != nil {
		return err
	}
	if o.timeout < time.Second {
		return fmt.Errorf("--timeout %v: it must be at least 1s; use a duration such as 15s", o.timeout)
	}
	return nil
}

// gatewayView is what one Envoy would get.
type gatewayView struct {
	snapshot *gateway.Snapshot
	instance controlplane.InstancePreview
	problems []problem.Problem
	note     string // about the mode auto; may be empty
}

// view returns what the Envoy would get, as soon as everything is known.
func (o *viewOptions) view(ctx context.Context) (*gatewayView, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	log, metrics := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	source, _, client, err := o.serve.newSource(log, metrics, controlplane.NewProblems(log, metrics), nil)
	if err != nil {
		return nil, err
	}
	if client != nil {
		defer client.LogOut() //nolint:contextcheck // also when ctx has ended
	}
	var unknown []problem.Problem
	p := previewer{
		source: source, envoy: gateway.EnvoyVersion(o.envoy), unknownBlocks: func(found []problem.Problem) { unknown = found },
	}
	if p.balancers, err = o.balancers(log, metrics); err != nil {
		return nil, err
	}
	file, err := o.serve.openConfigFile(log)
	if err != nil {
		return nil, err
	}
	if file != nil {
		p.file = file.Content()
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	var last controlplane.Preview
	err = p.run(ctx, []gateway.ID{o.id}, func(next controlplane.Preview) bool {
		last = next
		return o.isComplete(next)
	})
	if err != nil {
		return nil, err
	}
	instance, err := o.instanceOf(last)
	if err != nil {
		return nil, errors.Join(err, source.Ready())
	}
	return &gatewayView{snapshot: last.Snapshot, instance: instance, problems: append(unknown, last.Problems...), note: o.autoNote(last.Snapshot, instance)}, nil
}

// isComplete reports whether waiting for more is of no use. All files are read at once.
func (o *viewOptions) isComplete(p controlplane.Preview) bool {
	if p.Snapshot != nil && o.serve.configDir != "" {
		return true
	}
	instance, err := o.instanceOf(p)
	return err == nil && len(instance.HeldBack()) == 0
}

// instanceOf returns the instance that the flags name.
func (o *viewOptions) instanceOf(p controlplane.Preview) (controlplane.InstancePreview, error) {
	var found []controlplane.InstancePreview
	var names []string
	for _, in := range p.Instances {
		names = append(names, strings.TrimSuffix(fmt.Sprintf("%q on node %q", in.ServiceID, in.Node), ` on node ""`))
		if (o.serviceID == "" || in.ServiceID == o.serviceID) && (o.nodeName == "" || in.Node == o.nodeName) {
			found = append(found, in)
		}
	}
	switch {
	case p.Snapshot == nil:
		return controlplane.InstancePreview{}, fmt.Errorf("nothing is known of the gateway %q after %v", o.id, o.timeout)
	case p.Snapshot.Entry == nil:
		if len(p.Problems) > 0 {
			return controlplane.InstancePreview{}, errors.New(p.Problems[0].String())
		}
		return controlplane.InstancePreview{}, fmt.Errorf("there is no ingress-gateway entry %q; add one, or correct --gateway", o.id)
	case len(names) == 0:
		return controlplane.InstancePreview{}, fmt.Errorf("the gateway %q has no registered instance; register it, as its Envoy would get nothing", o.id)
	case len(found) == 0:
		return controlplane.InstancePreview{}, fmt.Errorf("the gateway %q has no such instance; use --service-id and --node-name of one of these: %s", o.id, strings.Join(names, ", "))
	case len(found) > 1:
		return controlplane.InstancePreview{}, fmt.Errorf("the gateway %q has several instances; choose one with --service-id or --node-name: %s", o.id, strings.Join(names, ", "))
	case found[0].Set == nil:
		return controlplane.InstancePreview{}, fmt.Errorf("the gateway %q could not be compiled: %s", o.id, p.Problems[0])
	}
	return found[0], nil
}

// balancers returns what listeners with the mode auto follow.
func (o *viewOptions) balancers(log *slog.Logger, metrics prometheus.Registerer) (balancerSource, error) {
	switch settings.Mode(o.mode) {
	case "":
		client, err := o.serve.connectKubernetes()
		if err != nil {
			return nil, err
		}
		return o.serve.newBalancers(client, log, metrics, nil, nil)
	case settings.Off, settings.Permissive, settings.Strict:
		return assumedMode(o.mode), nil
	}
	return nil, fmt.Errorf("--mode %q is unknown%s; use off, permissive or strict", o.mode,
		problem.DidYouMean(o.mode, []settings.Mode{settings.Off, settings.Permissive, settings.Strict}))
}

// assumedMode is the mode of all listeners that follow a Service.
type assumedMode settings.Mode

// Watch implements controlplane.BalancerSource.
func (m assumedMode) Watch(ctx context.Context, _ gateway.ID, _ gateway.KubernetesService, put func(*gateway.Balancer)) {
	put(&gateway.Balancer{OtherPorts: gateway.PortState{Mode: settings.Mode(m)}})
	<-ctx.Done()
}

// Warning implements warner.
func (assumedMode) Warning() string { return "" }

// autoNote says what the mode auto stands for, unless the Service in Kubernetes says it.
func (o *viewOptions) autoNote(s *gateway.Snapshot, in controlplane.InstancePreview) string {
	switch {
	case !s.HasAutoListener(in.Instance):
		return ""
	case in.Kubernetes == (gateway.KubernetesService{}):
		return "mode auto is off: the instance's registration names no Service in Kubernetes"
	case o.mode != "":
		return "mode auto is assumed to be " + o.mode + " (--mode)"
	case s.Balancers == nil:
		return "mode auto is assumed to be off: there is no cluster; name it with --kubeconfig, or assume another mode with --mode"
	}
	return ""
}

// warn prints what the reader of a view has to know, and returns whether a part of it is missing.
func (v *gatewayView) warn(w io.Writer) (incomplete bool) {
	if v.note != "" {
		fmt.Fprintln(w, "note:", v.note)
	}
	for _, p := range v.problems {
		fmt.Fprintln(w, "problem:", p)
	}
	heldBack := v.instance.HeldBack()
	for _, name := range heldBack {
		fmt.Fprintln(w, "held back:", name)
	}
	return len(heldBack) > 0
}

// renderedTypes are the types in the order of output, and their names there.
var renderedTypes = []struct {
	xds.Type
	name string
}{
	{xds.Listener, "listeners"},
	{xds.Route, "routes"},
	{xds.Cluster, "clusters"},
	{xds.Endpoint, "endpoints"},
	{xds.Secret, "secrets"},
	{xds.TokenBucket, "token_buckets"},
}

// resources returns what the Envoy would get, without secrets.
func (v *gatewayView) resources() (resourcediff.Resources, error) {
	out := resourcediff.Resources{}
	for _, t := range renderedTypes {
		for name, r := range v.instance.Set.Collection(t.Type).All() {
			body, err := r.Body()
			if err == nil {
				err = out.Add(name, body)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return out.Redact(), nil
}

// names returns the names of resources, sorted.
func names(byName map[string]resourcediff.Tree) []string {
	var all []string
	for name := range byName {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}
