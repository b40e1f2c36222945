// Package collect reads the facts of package doctor: it asks Envoy, Usher, Consul and Kubernetes, and probes listeners. It
// changes nothing.
package collect

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"k8s.io/client-go/rest"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/accesslog"
	"github.com/usherproxy/usher/internal/adminport"
	"github.com/usherproxy/usher/internal/doctor"
	"github.com/usherproxy/usher/internal/envoyadmin"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/probe"
	"github.com/usherproxy/usher/internal/status"
)

// Options say what to look at.
type Options struct {
	Gateway gateway.ID // without a name, it is found out
	// Probe is how listeners are probed. Its Target is the gateway's; empty: the listener is not probed.
	Probe    probe.Options
	Balancer string // HOST:PORT of the load balancer; empty: nothing is probed through it

	Consul      *consul.Client // nil: Consul is not asked
	ConsulAsked bool           // an address of Consul was given
	// Plan returns what Usher would serve an instance of the gateway, which may be nil.
	Plan       func(context.Context, gateway.ID, *consul.RegisteredInstance) (*doctor.Plan, error)
	Kubernetes rest.Interface // nil: there is no cluster

	EnvoyAdmin, UsherAdmin string
	EnvoyAsked, UsherAsked bool   // the addresses were given, and are not the defaults
	XDSAddr                string // of Usher's port for Envoys; empty: its certificate is not looked at
	Observe                time.Duration
}

// answerTimeout is how long a source may take to answer.
const answerTimeout = 10 * time.Second

// inTime bounds how long an answer may take.
func inTime(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, answerTimeout, fmt.Errorf("no answer within %v", answerTimeout))
}

// collector collects facts.
type collector struct {
	o     Options
	f     *doctor.Facts
	envoy envoyadmin.Client
	usher adminport.Client
}

// Run collects facts. The error is one of the probe's options.
func Run(ctx context.Context, o Options) (*doctor.Facts, error) {
	envoy := envoyadmin.New(o.EnvoyAdmin)
	c := collector{
		o: o, f: &doctor.Facts{Now: time.Now(), Gateway: o.Gateway, EnvoyAdmin: envoy.String()},
		envoy: envoy, usher: adminport.New(o.UsherAdmin, adminport.Usher),
	}
	c.name()
	c.askEnvoy(ctx)
	c.askUsher(ctx)
	c.findGateway()
	c.askConsul(ctx)
	c.findPort()
	c.observe(ctx) // before the probes, which count, too
	if err := c.probe(ctx); err != nil {
		return nil, err
	}
	c.plan(ctx)
	if c.o.XDSAddr != "" {
		c.f.Certificate.Facts, c.f.Certificate.Err = certificate(ctx, c.o.XDSAddr)
	}
	if c.o.Kubernetes != nil {
		c.f.Chart.Facts, c.f.Chart.Err = chart(ctx, c.o.Kubernetes)
	}
	return c.f, ctx.Err()
}

// name names the sources.
func (c *collector) name() {
	f := c.f
	f.Listener = doctor.Source[probe.Report]{Name: "the gateway's listener", Flag: "HOST:PORT", Asked: c.o.Probe.Target != ""}
	f.Balancer = doctor.Source[probe.Report]{Name: "the load balancer", Flag: "--balancer HOST:PORT", Asked: c.o.Balancer != ""}
	f.Envoy = doctor.Source[doctor.Envoy]{Name: "Envoy's counters at " + c.envoy.String(), Flag: "--envoy-admin URL", Asked: c.o.EnvoyAsked}
	f.Usher = doctor.Source[doctor.Usher]{Name: "Usher's state at " + c.usher.String(), Flag: "--usher-admin-addr HOST:PORT", Asked: c.o.UsherAsked}
	f.Certificate = doctor.Source[doctor.Certificate]{
		Name: "the certificate of Usher's port for Envoys", Flag: "--usher-xds-addr HOST:PORT", Asked: c.o.XDSAddr != "",
	}
	f.Chart = doctor.Source[doctor.Chart]{Name: "Kubernetes", Flag: "--kubeconfig FILE", Asked: c.o.Kubernetes != nil}
	if c.o.Consul != nil {
		f.Consul = doctor.Source[consul.Inspection]{
			Name: "Consul at " + c.o.Consul.Address(), Flag: "CONSUL_HTTP_ADDR or --consul-http-addr", Asked: c.o.ConsulAsked,
		}
	}
}

// askEnvoy asks the Envoy who it is.
func (c *collector) askEnvoy(ctx context.Context) {
	ctx, cancel := inTime(ctx)
	defer cancel()
	info, err := c.envoy.ServerInfo(ctx)
	of := gatewayOf(info.Node)
	switch {
	case err != nil:
		c.f.Envoy.Err = err
	case c.f.Gateway.Name != "" && of != c.f.Gateway:
		c.f.Envoy.Err = fmt.Errorf("it is an Envoy of %q, and not of gateway %q", of, c.f.Gateway)
	default:
		c.f.Envoy.Facts = &doctor.Envoy{Release: info.Release(), ServiceID: info.Node.GetId(), Gateway: of, Over: c.o.Observe}
	}
}

// gatewayOf returns the gateway that a node names, as in the bootstraps of Consul and of Usher.
func gatewayOf(node *corev3.Node) gateway.ID {
	metadata := node.GetMetadata().GetFields()
	return gateway.ID{
		Name:      node.GetCluster(),
		Namespace: gateway.OmitDefault(metadata["namespace"].GetStringValue()),
		Partition: gateway.OmitDefault(metadata["partition"].GetStringValue()),
	}
}

// askUsher asks Usher for its state.
func (c *collector) askUsher(ctx context.Context) {
	ctx, cancel := inTime(ctx)
	defer cancel()
	var found doctor.Usher
	if err := c.usher.GetJSON(ctx, status.Path, &found.State); err != nil {
		c.f.Usher.Err = err
		return
	}
	c.f.Usher.Facts = &found
}

// findGateway finds out which gateway it is, if no flag says it.
func (c *collector) findGateway() {
	if c.f.Gateway.Name != "" {
		return
	}
	if e := c.f.Envoy.Facts; e != nil {
		c.f.Gateway = e.Gateway
	}
	if u := c.f.Usher.Facts; c.f.Gateway.Name == "" && u != nil && len(u.Gateways) == 1 {
		c.f.Gateway, _ = gateway.ParseID(u.Gateways[0].Name)
	}
}

// askConsul asks Consul about itself, Usher's token and the gateway.
func (c *collector) askConsul(ctx context.Context) {
	client := c.o.Consul
	if client == nil {
		return
	}
	ctx, cancel := inTime(ctx)
	defer cancel()
	found, err := client.Inspect(ctx, c.f.Gateway)
	if err != nil {
		c.f.Consul.Err = err
		return
	}
	c.f.Consul.Facts = found
	if found.Entry != nil {
		c.f.Gateway.Name = found.Entry.Name
	}
}

// findPort finds out which listener it is: that of the target, or the gateway's only one.
func (c *collector) findPort() {
	if _, port, err := net.SplitHostPort(c.o.Probe.Target); err == nil {
		c.f.Port, _ = strconv.Atoi(port)
		return
	}
	if in := c.f.Consul.Facts; in != nil && in.Entry != nil && len(in.Entry.Listeners) == 1 {
		c.f.Port = in.Entry.Listeners[0].Port
		return
	}
	if u := c.f.Usher.Facts; u != nil {
		for _, g := range u.Gateways {
			if g.Name == c.f.Gateway.String() && len(g.Listeners) == 1 {
				c.f.Port = g.Listeners[0].Port
			}
		}
	}
}

// observe reads counters twice.
func (c *collector) observe(ctx context.Context) {
	envoy, usher := c.f.Envoy.Facts, c.f.Usher.Facts
	if envoy == nil && usher == nil {
		return
	}
	readEnvoy := func() (counters map[string]uint64) {
		if envoy != nil {
			var err error
			if counters, err = readCounters(ctx, c.envoy); err != nil {
				c.f.Envoy.Facts, c.f.Envoy.Err, envoy = nil, err, nil
			}
		}
		return counters
	}
	readUsher := func() (connections map[doctor.Reported]uint64) {
		if usher != nil {
			var err error
			if connections, usher.HeadersOnly, err = readConnections(ctx, c.usher); err != nil {
				c.f.Usher.Facts, c.f.Usher.Err, usher = nil, err, nil
			}
		}
		return connections
	}
	countersBefore := readEnvoy()
	late := min(accesslog.ReportTime, c.o.Observe/2) // what Envoys report later ended after doctor was started
	wait(ctx, late)
	reportedBefore := readUsher()
	wait(ctx, c.o.Observe-late)
	countersAfter, reportedAfter := readEnvoy(), readUsher()
	if envoy != nil {
		envoy.Before, envoy.After, envoy.XDS = countersBefore, countersAfter, countersAfter[connectedState] == 1
	}
	if usher != nil {
		usher.Before, usher.After = reportedBefore, reportedAfter
	}
}

// wait waits, and no longer than the context allows.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// probe probes the listener, and the load balancer.
func (c *collector) probe(ctx context.Context) (err error) {
	if c.o.Probe.Target != "" {
		if c.f.Listener.Facts, err = c.o.Probe.Run(ctx); err != nil {
			return err
		}
	}
	if c.o.Balancer != "" {
		through := c.o.Probe
		through.Target = c.o.Balancer
		if c.f.Balancer.Facts, err = through.Run(ctx); err != nil {
			return fmt.Errorf("--balancer: %w", err)
		}
	}
	return nil
}

// plan finds out what Usher would serve. A running Usher knows it itself, except for what a cluster has that this Usher
// does not use.
func (c *collector) plan(ctx context.Context) {
	if c.o.Plan == nil || c.f.Gateway.Name == "" || c.f.Usher.Facts != nil && c.o.Kubernetes == nil {
		return
	}
	var instance *consul.RegisteredInstance
	if in := c.f.Consul.Facts; in != nil {
		if in.Entry == nil || len(in.Instances) == 0 {
			return
		}
		instance = &in.Instances[0]
		for i := range in.Instances {
			if e := c.f.Envoy.Facts; e != nil && e.ServiceID == in.Instances[i].ServiceID {
				instance = &in.Instances[i]
			}
		}
	} else if c.o.Consul != nil {
		return
	}
	c.f.Plan.Name = cmp.Or(c.f.Plan.Name, "what Usher would serve")
	c.f.Plan.Flag = "--config, --kubeconfig"
	c.f.Plan.Facts, c.f.Plan.Err = c.o.Plan(ctx, c.f.Gateway, instance)
}
