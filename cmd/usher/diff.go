package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/accesslog"
	"github.com/usherproxy/usher/internal/envoyadmin"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/resourcediff"
)

// diffOptions are the flags of usher diff.
type diffOptions struct {
	viewOptions
	envoyAdmin, against string
}

func diffCommand() *cobra.Command {
	var o diffOptions
	cmd := &cobra.Command{
		Use:   "diff --gateway NAME",
		Short: "Print how what an Envoy would get differs from Consul's own xDS, from what it runs, or from other settings.",
		Long: "Diff compares what usher render prints (+) with one of these (-):\n\n" +
			"  Consul's own xDS                         without other flags; before you move a gateway to Usher\n" +
			"  what an Envoy runs                       --envoy-admin, without its endpoints and connection reports\n" +
			"  what it gets with other settings         --against FILE (as --config) or DIRECTORY (as --config-dir)\n\n" +
			"It prints what differs as diff -u of YAML, by resource. Secrets over SDS count as if they were inside the resources\n" +
			"that refer to them; keys are never compared. The exit status is 0 if nothing differs, 1 if something does, and 2\n" +
			"if there is an error.",
		Example: "  usher diff --gateway ingress-gateway --config /etc/usher/usher.hcl\n" +
			"  usher diff --gateway ingress-gateway --config /etc/usher/usher.hcl --envoy-admin http://127.0.0.1:19000\n" +
			"  usher diff --gateway edge --config-dir gateways/ --config new.hcl --against old.hcl",
		Args:        noArguments,
		Annotations: map[string]string{troubleStatus: "2"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			differs, err := o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
			if err != nil || !differs {
				return err
			}
			return errBadResult
		},
	}
	o.register(cmd)
	cmd.Flags().StringVar(&o.envoyAdmin, "envoy-admin", "", "Compare with what the Envoy runs whose admin interface is at this URL, such as http://127.0.0.1:19000. "+
		"Its release and service ID are the defaults of --envoy-version and --service-id.")
	cmd.Flags().StringVar(&o.against, "against", "", "Compare with other settings: a file for --config, or a directory for --config-dir.")
	return cmd
}

// run prints the differences.
func (o *diffOptions) run(ctx context.Context, out, warnings io.Writer) (differs bool, err error) {
	if err := o.check(); err != nil {
		return false, err
	}
	if o.envoyAdmin != "" {
		if err := o.askEnvoy(ctx); err != nil {
			return false, fmt.Errorf("--envoy-admin: %w", err)
		}
	}
	v, err := o.view(ctx)
	if err != nil {
		return false, err
	}
	if v.warn(warnings) {
		return false, errHeldBack
	}
	after, err := v.resources()
	if err != nil {
		return false, err
	}
	name, before, err := o.base(ctx, v, after, warnings)
	if err != nil {
		return false, err
	}
	if o.envoyAdmin != "" {
		before, after = before.Without(resource.EndpointType), after.Without(resource.EndpointType)
	}
	if before, err = before.Redact().Canonical(); err != nil {
		return false, fmt.Errorf("%s: %w", name, err)
	}
	if after, err = after.Canonical(); err != nil {
		return false, err
	}
	return resourcediff.Unified(out, name, "usher", before, after)
}

var errHeldBack = errors.New("a resource that is held back cannot be compared; correct the problems above")

// check returns an error if flags do not go together.
func (o *diffOptions) check() error {
	switch {
	case o.envoyAdmin != "" && o.against != "":
		return errors.New("--envoy-admin and --against: Usher compares with one of them; remove the other")
	case o.envoyAdmin == "" && o.against == "" && o.serve.configDir != "":
		return errors.New("--config-dir: there is no Consul to compare with; add --envoy-admin or --against")
	}
	return o.viewOptions.check()
}

// base returns what the Envoy's resources are compared with, and its name.
func (o *diffOptions) base(ctx context.Context, v *gatewayView, after resourcediff.Resources, warnings io.Writer) (string, resourcediff.Resources, error) {
	switch {
	case o.envoyAdmin != "":
		before, err := o.askDump(ctx)
		leaveOutReports(before)
		return "envoy", before, err
	case o.against != "":
		before, err := o.other(ctx, warnings)
		if err != nil {
			err = fmt.Errorf("--against %s: %w", o.against, err)
		}
		return o.against, before, err
	}
	before, err := o.fromConsul(ctx, v, len(after[resource.ListenerType]) > 0)
	return "consul", before, err
}

// leaveOutReports removes what makes listeners report their connections: the key of the Usher that serves them decides
// it, which this command does not have.
func leaveOutReports(r resourcediff.Resources) {
	for _, tree := range r[resource.ListenerType] {
		listener, _ := tree.(map[string]any)
		logs, _ := listener["access_log"].([]any)
		logs = slices.DeleteFunc(logs, func(log resourcediff.Tree) bool {
			fields, _ := log.(map[string]any)
			return fields["name"] == accesslog.ReportName
		})
		delete(listener, "access_log")
		if len(logs) > 0 {
			listener["access_log"] = logs
		}
	}
}

// other returns what the Envoy would get with the settings of --against.
func (o *diffOptions) other(ctx context.Context, warnings io.Writer) (resourcediff.Resources, error) {
	other := o.viewOptions
	info, err := os.Stat(o.against)
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		other.serve.configDir = o.against
	default:
		other.serve.configFile = o.against
	}
	v, err := other.view(ctx)
	if err != nil {
		return nil, err
	}
	if v.warn(warnings) {
		return nil, errHeldBack
	}
	return v.resources()
}

// maxResponse is the largest response of Consul's xDS that is read.
const maxResponse = 256 << 20

// consulsEnvoy is the release of Envoy that diff claims to be at Consul, if no other is given. Consul 1.22 supports none that is newer.
var consulsEnvoy = gateway.EnvoyVersion{Major: 1, Minor: 35}

// fromConsul returns what the Envoy gets from Consul's own xDS.
func (o *diffOptions) fromConsul(ctx context.Context, v *gatewayView, hasListeners bool) (resourcediff.Resources, error) {
	client, err := o.serve.newQuietConsulClient(ctx)
	if err != nil {
		return nil, err
	}
	defer client.LogOut() //nolint:contextcheck // also when ctx has ended
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	envoy := gateway.EnvoyVersion(o.envoy)
	if envoy == (gateway.EnvoyVersion{}) {
		envoy = consulsEnvoy
	}
	release := &typev3.SemanticVersion{MajorNumber: envoy.Major, MinorNumber: envoy.Minor, Patch: envoy.Patch}
	node := resourcediff.Node(v.instance.ServiceID, o.id.Name, release, map[string]string{
		"node_name": v.instance.Node, "namespace": o.id.Namespace, "partition": o.id.Partition,
	})
	resources, target, err := fetchFrom(ctx, client, node, func(r resourcediff.Resources) bool {
		return !hasListeners || len(r[resource.ListenerType]) > 0
	})
	if err != nil && target != "" {
		err = consulXDSError(target, err)
	}
	return resources, err
}

// fetchFrom returns what an Envoy gets from the xDS server at the gRPC address of a client of Consul, with its token, and the
// name of that server; "" if it is not known.
func fetchFrom(ctx context.Context, client *consul.Client, node *corev3.Node, isEnough func(resourcediff.Resources) bool,
) (resources resourcediff.Resources, target string, err error) {
	conn, err := client.DialGRPC(ctx, grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponse)))
	if err != nil {
		return nil, "", err
	}
	defer conn.Close()
	withToken, err := client.WithToken(ctx)
	if err != nil {
		return nil, "", err
	}
	resources, err = resourcediff.Fetch(withToken, conn, node, isEnough)
	return resources, conn.Target(), err
}

func consulXDSError(target string, err error) error {
	return fmt.Errorf("consul's xDS at %s: %s; Usher's token needs service:write on the gateway, and the port is that of --consul-grpc-addr",
		strings.TrimPrefix(target, "dns:///"), status.Convert(err).Message())
}

// askEnvoy sets what the Envoy says about itself, unless a flag says it.
func (o *diffOptions) askEnvoy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	info, err := envoyadmin.New(o.envoyAdmin).ServerInfo(ctx)
	if err != nil {
		return err
	}
	if release := info.Release(); o.envoy == (envoyVersion{}) && release != "" {
		if err := o.envoy.Set(release); err != nil {
			return fmt.Errorf("the Envoy says that it is %q; name its release with --envoy-version", info.Version)
		}
	}
	if o.serviceID == "" {
		o.serviceID = info.Node.GetId()
	}
	return nil
}

// askDump returns what the Envoy runs.
func (o *diffOptions) askDump(ctx context.Context) (resourcediff.Resources, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	text, err := envoyadmin.New(o.envoyAdmin).Get(ctx, "/config_dump")
	if err != nil {
		return nil, err
	}
	return resourcediff.ReadDump(text)
}
