package controlplane

import (
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/xds"
)

// PreviewOptions say for which Envoy a preview is made, and who gets it.
type PreviewOptions struct {
	Envoy gateway.EnvoyVersion // zero: newer than every release
	// Put gets the newest preview of a gateway. The goroutine of the gateway calls it, and it must not block.
	Put func(Preview)
}

// Preview is what Envoys of a gateway would get now, compiled as for those that are connected.
type Preview struct {
	Gateway  gateway.ID
	Snapshot *gateway.Snapshot // with the settings of the config file; nil before the source has delivered one
	// Instances are those of Snapshot, in its order.
	Instances []InstancePreview
	Problems  []problem.Problem // all of the gateway
}

// InstancePreview is what an Envoy would get that is one of the instances.
type InstancePreview struct {
	*gateway.Instance
	Set *xds.Set // nil if its compile has panicked
}

// compilePreview returns a preview if one is asked for, and the problems with those of its compile.
func (w *gatewayWorker) compilePreview(problems []problem.Problem) (Preview, []problem.Problem) {
	preview := Preview{Gateway: w.id, Snapshot: w.encoder.snapshot}
	o := w.plane.options.Preview
	if o == nil {
		return preview, problems
	}
	for _, in := range w.encoder.snapshot.Instances {
		set, found := w.encoder.resourceSetFor(in, xds.Node{Major: o.Envoy.Major, Minor: o.Envoy.Minor, Patch: o.Envoy.Patch})
		problems = append(problems, found...)
		preview.Instances = append(preview.Instances, InstancePreview{in, set})
	}
	return preview, problems
}

// HeldBack returns the names of the resources that Usher would neither send nor remove, each after its type.
func (p InstancePreview) HeldBack() (names []string) {
	for t := range xds.Type(xds.NumTypes) {
		if c := p.Set.Collection(t); c != nil {
			for _, name := range c.HeldBack() {
				names = append(names, t.String()+" "+name)
			}
		}
	}
	return names
}
