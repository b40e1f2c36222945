package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/spf13/cobra"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/doctor"
	"github.com/usherproxy/usher/internal/doctor/collect"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
)

// doctorOptions are the flags of usher doctor.
type doctorOptions struct {
	viewOptions
	collect.Options
	output string
}

func doctorCommand() *cobra.Command {
	var o doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor [HOST:PORT]",
		Short: "Find out why clients get 400s or closed connections, and what to do about it.",
		Long: `Doctor looks at a gateway's listener (HOST:PORT, which it probes as usher probe
does), at the load balancer in front of it (--balancer), at Envoy's counters, at
a running Usher, at Consul with Usher's token, and at the gateway's Service in
Kubernetes. It changes nothing. Each source is optional, and at the end it says
which ones it did not look at.

For each finding it prints what shows it and, if there is one, the command or the
part of a config file that corrects it. Run it on the gateway's host, with
Usher's environment: the default addresses are the ones there.

Exit status:
  0  It found nothing worse than a notice.
  1  It found something that is degraded, or an outage.
  2  It found nothing wrong, but a source that you named does not answer, or a
     flag is wrong.`,
		Example: "  usher doctor 10.0.0.5:8080 --host www.example.com\n" +
			"  usher doctor 10.0.0.5:8080 --balancer lb.example.com:80 --gateway ingress-gateway -o json",
		Args:        cobra.MaximumNArgs(1),
		Annotations: map[string]string{troubleStatus: "2"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.Probe.Target = args[0]
			}
			o.EnvoyAsked, o.UsherAsked = cmd.Flags().Changed("envoy-admin"), cmd.Flags().Changed("usher-admin-addr")
			return o.run(cmd.Context(), cmd.OutOrStdout())
		},
	}
	o.register(cmd)
	return cmd
}

// register adds all flags of usher doctor.
func (o *doctorOptions) register(cmd *cobra.Command) {
	o.viewOptions.register(cmd)
	f := cmd.Flags()
	f.Lookup("gateway").Usage = "Service name of the gateway. Default: that of the Envoy at --envoy-admin, else the only one in Consul."
	f.StringVar(&o.Balancer, "balancer", "", "HOST:PORT of the load balancer. Doctor probes through it, too, and so finds out whether it sends PROXY headers.")
	f.StringVar(&o.Probe.Host, "host", "", "Host of the probes' requests, and server name of their TLS handshakes. Default: HOST:PORT.")
	f.StringVar(&o.Probe.Path, "path", "", "Path of the probes' requests. Default: /.")
	f.BoolVar(&o.Probe.TCP, "tcp", false, "Send a line of text instead of an HTTP request, for tcp listeners.")
	f.DurationVar(&o.Probe.Timeout, "probe-timeout", 3*time.Second, "How long to wait for each answer to a probe.")
	f.StringVar(&o.EnvoyAdmin, "envoy-admin", "http://127.0.0.1:19000", "URL of the admin interface of the gateway's Envoy.")
	f.StringVar(&o.UsherAdmin, "usher-admin-addr", "127.0.0.1:18001", "Address host:port of Usher's admin port.")
	f.StringVar(&o.XDSAddr, "usher-xds-addr", "", "Address host:port of Usher's port for Envoys, whose certificate may expire. Default: doctor does not look at it.")
	f.DurationVar(&o.Observe, "observe", 3*time.Second, "For how long doctor watches the counters of Envoy and Usher.")
	f.StringVarP(&o.output, "output", "o", "text", "Format of the output: text or json.")
}

// check returns an error if a flag is out of bounds.
func (o *doctorOptions) check() error {
	if err := o.checkBounds(); err != nil {
		return err
	}
	switch {
	case o.output != "text" && o.output != "json":
		return fmt.Errorf("--output %q is unknown; use text or json", o.output)
	case o.Observe < 0:
		return fmt.Errorf("--observe %v: it must not be negative; use a duration such as 3s", o.Observe)
	case o.Probe.Timeout <= 0:
		return fmt.Errorf("--probe-timeout %v: it must be more than 0s; use a duration such as 3s", o.Probe.Timeout)
	case o.serve.loginAuthMethod != "":
		return errors.New("--login-auth-method: usher doctor does not log in; put a token with Usher's permissions into CONSUL_HTTP_TOKEN")
	case o.Probe.Target == "" && o.Balancer != "":
		return errors.New("--balancer: name the gateway's listener, too: HOST:PORT")
	case o.Probe.Target == "":
		return nil
	}
	return o.Probe.Check()
}

// run collects facts and prints the report. The error has the exit status.
func (o *doctorOptions) run(ctx context.Context, out io.Writer) error {
	o.Probe.Version = thisBuild().Version
	if err := o.check(); err != nil {
		return err
	}
	o.Gateway = o.id
	if err := o.connect(ctx); err != nil {
		return err
	}
	facts, err := collect.Run(ctx, o.Options)
	if err != nil {
		return err
	}
	report := doctor.Diagnose(facts)
	if o.output == "json" {
		encoder := json.NewEncoder(out)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(report)
	} else {
		err = report.Text(out)
	}
	if status := report.Status(); err == nil && status != 0 {
		return exitError{status: status}
	}
	return err
}

// connect makes the clients.
func (o *doctorOptions) connect(ctx context.Context) (err error) {
	kubernetes, err := o.serve.connectKubernetes()
	if err != nil {
		return err
	}
	if kubernetes != nil { // else o.Kubernetes would not be nil
		o.Kubernetes = kubernetes
	}
	o.Plan = o.plan
	if o.serve.configDir != "" {
		return nil
	}
	o.ConsulAsked = len(o.serve.consulHTTPAddrs) > 0 || os.Getenv(api.HTTPAddrEnvName) != ""
	o.Consul, err = o.serve.newQuietConsulClient(ctx)
	return err
}

// plan returns what Usher would serve the instance.
func (o *doctorOptions) plan(ctx context.Context, id gateway.ID, in *consul.RegisteredInstance) (*doctor.Plan, error) {
	view := o.viewOptions
	view.id = id
	if in != nil && view.serviceID == "" {
		view.serviceID, view.nodeName = in.ServiceID, in.Node
	}
	v, err := view.view(ctx)
	if err != nil {
		return nil, err
	}
	return planOf(v), nil
}

// planOf returns what doctor needs of a view.
func planOf(v *gatewayView) *doctor.Plan {
	p := &doctor.Plan{Problems: v.problems, ServiceModes: map[int]settings.Mode{}}
	if v.snapshot.Balancers == nil {
		return p
	}
	p.Service = v.instance.Kubernetes
	for _, l := range v.snapshot.Entry.Listeners {
		p.ServiceModes[l.Port] = v.snapshot.BalancerOf(v.instance.Instance).ForPort(l.Port).Mode
	}
	return p
}
