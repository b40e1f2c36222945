package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/adminport"
	"github.com/usherproxy/usher/internal/cutover"
	"github.com/usherproxy/usher/internal/envoyadmin"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/resourcediff"
)

// cutoverOptions are the flags of usher cutover.
type cutoverOptions struct {
	cutover.Options
	old, new, grpcAddr, usherAdmin string
	start, stop                    string
	undo                           bool
}

// Where the Envoys' admin interfaces are: that of one on Consul's own xDS, and that of one on Usher.
const (
	consulsEnvoyAdmin = "127.0.0.1:19000"
	ushersEnvoyAdmin  = "127.0.0.1:19001"
)

func cutoverCommand() *cobra.Command {
	var o cutoverOptions
	cmd := &cobra.Command{
		Use:   "cutover",
		Short: "Replace a gateway's running Envoy by one that Usher configures, or back, without losing a request.",
		Long: `Cutover moves a gateway on a VM from an Envoy that Consul's own xDS configures
to one that Usher configures. Both run on the same VM:

  1. It checks what would be lost, and stops if anything would: the kernel's
     setting, endpoints, ports, the modes of PROXY protocol, other differences.
  2. It starts the new Envoy with the command of --start, or asks you to do it.
  3. It waits until the new Envoy serves everything that the old one does.
  4. It drains the old Envoy, and waits until that has no connection any more.
  5. It ends the old Envoy with the command of --stop, or asks you to do it.

After Ctrl-C or an error, requests are served, and it says by which Envoy. Run
it again to go on. --undo goes the same way back to Consul's own xDS.

Cutover asks the xDS server what the new Envoy would get. For that it needs the
gateway's token in CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE, if Consul's ACLs
are on. It reads the same environment variables as the consul command.`,
		Example: "  usher cutover --dry-run\n" +
			"  usher cutover --start 'systemctl enable --now gateway-usher' --stop 'systemctl disable --now gateway'\n" +
			"  usher cutover --undo --start 'systemctl enable --now gateway' --stop 'systemctl disable --now gateway-usher'",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			if err := o.complete(cmd); err != nil {
				return err
			}
			client, err := serveOptions{consulGRPCAddrs: []string{o.grpcAddr}}.newQuietConsulClient(ctx)
			if err != nil {
				return err
			}
			defer client.LogOut()
			o.Target = &xdsTarget{cutoverOptions: &o, client: client}
			return o.Run(ctx)
		},
	}
	o.register(cmd)
	return cmd
}

// register adds all flags of usher cutover.
func (o *cutoverOptions) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.old, "old", "", "Admin interface of the Envoy that is replaced. Default: "+consulsEnvoyAdmin+", or "+ushersEnvoyAdmin+" with --undo.")
	f.StringVar(&o.new, "new", "", "Admin interface of the Envoy that takes its place. Default: "+ushersEnvoyAdmin+", or "+consulsEnvoyAdmin+" with --undo.")
	f.StringVar(&o.grpcAddr, "grpc-addr", "", "The xDS server of the new Envoy, as for consul connect envoy. Default: http://127.0.0.1:18000, or Consul's own with --undo.")
	f.StringVar(&o.usherAdmin, "usher-admin-addr", "127.0.0.1:18001", "Usher's admin port (--admin-addr of usher serve).")
	f.StringVar(&o.start, "start", "", "Command for sh that starts the new Envoy. Default: wait until you have started it.")
	f.StringVar(&o.stop, "stop", "", "Command for sh that ends the old Envoy when it has no connection any more. Default: leave it.")
	f.BoolVar(&o.undo, "undo", false, "Go back to Consul's own xDS.")
	f.BoolVar(&o.DryRun, "dry-run", false, "Only check, and print what would be done.")
	f.StringSliceVar(&o.Accept, "accept", nil, "Go on although this check has failed: "+strings.Join(cutover.Acceptable, ", ")+". Requests can be lost.")
	f.DurationVar(&o.Timeout, "timeout", 10*time.Minute, "How long to wait for the new Envoy, and then for the connections of the old one.")
}

// complete checks the flags and sets what follows from them.
func (o *cutoverOptions) complete(cmd *cobra.Command) error {
	for _, name := range o.Accept {
		if !slices.Contains(cutover.Acceptable, name) {
			return fmt.Errorf("--accept %q is unknown%s; use %s", name, problem.DidYouMean(name, cutover.Acceptable), strings.Join(cutover.Acceptable, ", "))
		}
	}
	if o.Timeout < time.Second {
		return fmt.Errorf("--timeout %v: it must be at least 1s; use a duration such as 10m", o.Timeout)
	}
	before, after := consulsEnvoyAdmin, ushersEnvoyAdmin
	if o.undo {
		before, after = after, before
	} else {
		o.grpcAddr = cmp.Or(o.grpcAddr, "http://127.0.0.1:18000")
	}
	o.old, o.new = cmp.Or(o.old, before), cmp.Or(o.new, after)
	if o.old == o.new {
		return fmt.Errorf("--old and --new are both %s; two Envoys need two admin ports", o.old)
	}
	o.Old, o.New, o.Watch, o.Out = envoyadmin.New(o.old), envoyadmin.New(o.new), 3*time.Second, cmd.OutOrStdout()
	o.Start, o.Stop = commandOf(o.start), commandOf(o.stop)
	return nil
}

// commandOf returns a command; nil for none.
func commandOf(line string) *cutover.Command {
	if line == "" {
		return nil
	}
	return &cutover.Command{Line: line, Output: os.Stderr}
}

// xdsTarget is the xDS server of the new Envoy: Usher, or Consul with --undo.
type xdsTarget struct {
	*cutoverOptions
	client *consul.Client // of the server
}

// String implements cutover.Target.
func (t *xdsTarget) String() string {
	if t.undo {
		return "Consul's own xDS"
	}
	return "Usher at " + t.grpcAddr
}

// Hint implements cutover.Target.
func (t *xdsTarget) Hint() string {
	if t.grpcAddr == "" {
		return "with the command of the old one, without -grpc-addr, and with -admin-bind " + t.new
	}
	return "with the command of the old one, and with -grpc-addr " + t.grpcAddr + " -admin-bind " + t.new
}

// Ready implements cutover.Target.
func (t *xdsTarget) Ready(ctx context.Context) error {
	if t.undo {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	if _, err := adminport.New(t.usherAdmin, adminport.Usher).Get(ctx, "/readyz"); err != nil {
		return fmt.Errorf("--usher-admin-addr: %w", err)
	}
	return nil
}

// fetchTimeout is how long an xDS server may take until it has sent everything.
const fetchTimeout = 15 * time.Second

// Fetch implements cutover.Target.
func (t *xdsTarget) Fetch(ctx context.Context, node *corev3.Node, listeners int) (resourcediff.Resources, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	node.Extensions = nil // they are long, and no server reads them
	var last resourcediff.Resources
	all, target, err := fetchFrom(ctx, t.client, node, func(r resourcediff.Resources) bool {
		last = r
		return len(r[resource.ListenerType]) >= listeners
	})
	switch {
	case err == nil:
		return all, nil
	case last != nil && ctx.Err() != nil && !errors.Is(context.Cause(ctx), context.Canceled):
		return last, nil // it sends fewer listeners
	case target == "":
		return nil, err
	}
	return nil, fmt.Errorf("%s: %s; the gateway's token with service:write on it has to be in CONSUL_HTTP_TOKEN, and --grpc-addr has to be the xDS server",
		t, status.Convert(err).Message())
}
