package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/usherproxy/usher/internal/bootstrap"
	"github.com/usherproxy/usher/internal/consulchart"
)

// helmValuesOptions are the flags of usher helm-values.
type helmValuesOptions struct {
	files              []string
	gateways           []string
	release, namespace string
	chartVersion       string
	service, xdsAddr   string
	caFile, caPath     string
	serverName         string
	sendToken          bool
	drainTime          time.Duration
	check              bool
	checkOptions       checkOptions
}

func helmValuesCommand() *cobra.Command {
	var o helmValuesOptions
	cmd := &cobra.Command{
		Use:   "helm-values -f consul-values.yaml",
		Short: "Print the values that move ingress gateways of the Consul Helm chart to Usher.",
		Long: "Helm-values reads your values of the official Consul chart and prints values for a second -f. They give the\n" +
			"gateways' pods an annotation with a bootstrap that connects Envoy to Usher, and the time to drain if they do not have it:\n\n" +
			"  usher helm-values -f consul-values.yaml |\n" +
			"    helm upgrade consul hashicorp/consul -n consul --version VERSION -f consul-values.yaml -f -\n\n" +
			"The same helm upgrade without the second -f takes the gateways back. What you should know about your values is\n" +
			"printed to stderr. Values that are only in the cluster come from \"helm get values consul -n consul | usher\n" +
			"helm-values -f -\".",
		Args: func(cmd *cobra.Command, args []string) error { return o.stopHelm(cmd, noArguments(cmd, args)) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("send-token") {
				return o.stopHelm(cmd, o.run(cmd, nil))
			}
			return o.stopHelm(cmd, o.run(cmd, &o.sendToken))
		},
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return o.stopHelm(cmd, flagError(cmd, err)) })
	o.register(cmd)
	return cmd
}

// noValues is what stdout gets instead of values. Helm refuses a list, but takes an empty file, and would go on without
// the override: that is an upgrade which takes the gateways back to Consul's own xDS.
const noValues = `- "usher helm-values has failed, and its error is on stderr; this is a list, so that helm does not go on without the values"`

// stopHelm prints noValues if there is an error, which it returns.
func (o *helmValuesOptions) stopHelm(cmd *cobra.Command, err error) error {
	if err != nil && !o.check {
		fmt.Fprintln(cmd.OutOrStdout(), noValues)
	}
	return err
}

// register adds all flags of usher helm-values.
func (o *helmValuesOptions) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVarP(&o.files, "values", "f", nil, "File with values of the Consul chart; - reads stdin. "+
		"If you give several, a later one wins, as with Helm.")
	f.StringArrayVar(&o.gateways, "gateway", nil, "Gateway that gets the bootstrap. You can give several. Default: all.")
	f.StringVar(&o.release, "release", "consul", "Name of the Helm release of Consul.")
	f.StringVarP(&o.namespace, "namespace", "n", "consul", "Namespace of that release.")
	f.StringVar(&o.chartVersion, "chart-version", "",
		"Version of the Consul chart in use. Default: the tag of global.imageK8S in the values, else the newest.")
	f.StringVar(&o.service, "usher-service", "usher", "Service of Usher: NAME in the namespace of Consul, or NAMESPACE/NAME.")
	f.StringVar(&o.xdsAddr, "xds-addr", "", "Address of Usher's xDS server for the gateways' pods: https://host:port, or host:port without TLS. "+
		"Default: port 18000 of --usher-service, with TLS.")
	f.StringVar(&o.caFile, "ca-file", "", "PEM file with the CA certificates that verify Usher's certificate. They become part of the annotation.")
	f.StringVar(&o.caPath, "ca-path-in-pod", "", "Such a file in the gateways' pods. "+
		"Default without --ca-file: Consul's CA, if the values enable TLS.")
	f.StringVar(&o.serverName, "tls-server-name", "", "Name that Usher's certificate must have. Default: the host of the address.")
	f.BoolVar(&o.sendToken, "send-token", false, "Whether Envoy sends the token of its pod's service account to Usher. "+
		"Default: true if global.acls.manageSystemACLs is.")
	f.DurationVar(&o.drainTime, "drain-time", bootstrap.DefaultDrainTime, "How long the Envoy of a pod that Kubernetes ends goes on to serve. "+
		"0 means that it ends at once.")
	f.BoolVar(&o.check, "check", false, "Check whether the gateways' pods use Usher, by the annotation or by flags for consul-dataplane, and print what is wrong. "+
		"The exit status is 1 if there are any.")
	o.checkOptions.register(f)
}

// endTime is what Kubernetes has to give the container for the rest of its end.
const endTime = 2 * time.Second

// maxDrainTime is a day.
const maxDrainTime = 24 * time.Hour

// run prints the override, or what differs from it. sendToken is nil if the values decide.
func (o *helmValuesOptions) run(cmd *cobra.Command, sendToken *bool) error {
	if o.drainTime < 0 || o.drainTime > maxDrainTime {
		return fmt.Errorf("--drain-time %v: it must be from 0s to %v; use a duration such as 8s", o.drainTime, maxDrainTime)
	}
	values, err := readValues(o.files, cmd.InOrStdin())
	if err != nil {
		return err
	}
	notices, err := values.Notices(o.chartVersion)
	if err != nil {
		return err
	}
	if o.check {
		return o.checkRunning(cmd, values, sendToken)
	}
	override, err := o.override(values, sendToken)
	if err != nil {
		return err
	}
	for _, n := range notices {
		fmt.Fprintln(cmd.ErrOrStderr(), "notice:", n)
	}
	if override.bootstrap.CAFile != "" && o.caPath == "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "notice: --ca-file is not set, so Envoys verify Usher's certificate with Consul's CA (%s); "+
			"if another CA has signed it, set --ca-file\n", override.bootstrap.CAFile)
	}
	return o.print(cmd.OutOrStdout(), override)
}

// override is what helm-values prints, and the bootstrap in it.
type override struct {
	*consulchart.Override
	bootstrap bootstrap.DataplaneOptions
}

// override returns what helm-values prints for the values. sendToken is nil if the values decide.
func (o *helmValuesOptions) override(values *consulchart.Values, sendToken *bool) (*override, error) {
	if err := values.CheckChart(o.chartVersion); err != nil {
		return nil, err
	}
	b, err := o.bootstrapOptions(values, sendToken)
	if err != nil {
		return nil, err
	}
	template, err := bootstrap.DataplaneTemplate(b)
	if err != nil {
		return nil, err
	}
	overrideOptions := consulchart.OverrideOptions{Template: template, Gateways: o.gateways}
	if b.Drains() {
		overrideOptions.GracePeriod = o.drainTime + endTime
	}
	made, err := values.Override(overrideOptions)
	return &override{made, b}, err
}

// checkRunning prints how what runs differs from gateways that use Usher. Without an override, only flags can have moved
// them there.
func (o *helmValuesOptions) checkRunning(cmd *cobra.Command, values *consulchart.Values, sendToken *bool) error {
	gateways, err := values.ChosenGateways(o.gateways)
	if err != nil {
		return err
	}
	usher, err := o.usher()
	if err != nil {
		return err
	}
	t := target{namespace: o.namespace, prefix: values.Prefix(o.release), usher: usher}
	override, err := o.override(values, sendToken)
	if err != nil {
		t.noAnnotation = err
		return o.checkOptions.run(cmd, t, gateways)
	}
	return o.checkOptions.run(cmd, t, override.Gateways)
}

// print prints the override, with comments that say what it is.
func (o *helmValuesOptions) print(w io.Writer, override *override) error {
	var names []string
	for _, g := range override.Gateways {
		names = append(names, g.Gateway)
	}
	_, err := fmt.Fprintf(w, "# Values by usher helm-values: Envoys of %s connect to Usher at %s.\n"+
		"# Give them to helm upgrade with a second -f, after your own values.\n%s", strings.Join(names, ", "), override.bootstrap.XDSAddr, override.Text)
	return err
}

// readValues reads and merges the files.
func readValues(paths []string, stdin io.Reader) (*consulchart.Values, error) {
	if len(paths) == 0 {
		return nil, errors.New("--values: the values of the Consul chart are needed; give the files of your helm upgrade with -f")
	}
	var files []consulchart.File
	if n := slices.Index(paths, "-"); n >= 0 && slices.Contains(paths[n+1:], "-") {
		return nil, errors.New("--values -: stdin can be read only once; give - once")
	}
	for _, path := range paths {
		file := consulchart.File{Name: path}
		var err error
		if path == "-" {
			file.Name = "stdin"
			file.Text, err = io.ReadAll(stdin)
		} else {
			file.Text, err = os.ReadFile(path)
		}
		if err != nil {
			return nil, fmt.Errorf("--values %s: %w", path, err)
		}
		files = append(files, file)
	}
	return consulchart.Parse(files...)
}

// usher returns the names in --usher-service.
func (o *helmValuesOptions) usher() (usherRelease, error) {
	namespace, name, ok := strings.Cut(o.service, "/")
	if !ok {
		namespace, name = o.namespace, o.service
	}
	if namespace == "" || name == "" || strings.Contains(name, "/") {
		return usherRelease{}, fmt.Errorf("--usher-service %s: use the NAME of a Service, or its NAMESPACE/NAME", o.service)
	}
	return usherRelease{namespace, name}, nil
}

// bootstrapOptions returns where Envoys find Usher, from the flags and the values.
func (o *helmValuesOptions) bootstrapOptions(values *consulchart.Values, sendToken *bool) (bootstrap.DataplaneOptions, error) {
	deferStats, err := values.DefersStats(o.chartVersion)
	if err != nil {
		return bootstrap.DataplaneOptions{}, err
	}
	b := bootstrap.DataplaneOptions{
		XDSAddr: o.xdsAddr, CAFile: o.caPath, ServerName: o.serverName, DeferStats: deferStats, DrainTime: o.drainTime,
	}
	if b.XDSAddr == "" {
		usher, err := o.usher()
		if err != nil {
			return b, err
		}
		b.XDSAddr = "https://" + usher.host() + ":18000"
	}
	if err := o.setCA(&b, values); err != nil {
		return b, err
	}
	if send := values.SendsTokens(); sendToken != nil && *sendToken || sendToken == nil && send {
		b.TokenFile = serviceAccountTokenFile
	}
	return b, nil
}

// setCA sets the CA of Usher's certificate: from the flags, or Consul's if the pods have it.
func (o *helmValuesOptions) setCA(b *bootstrap.DataplaneOptions, values *consulchart.Values) error {
	if o.caFile != "" && o.caPath != "" {
		return errors.New("--ca-file and --ca-path-in-pod: both name the CA of Usher's certificate; set one of them")
	}
	if o.caFile != "" {
		pem, err := os.ReadFile(o.caFile)
		if err != nil {
			return fmt.Errorf("--ca-file: %w", err)
		}
		b.CACert = string(pem)
	}
	if isTLS := strings.HasPrefix(b.XDSAddr, "https://"); isTLS && b.CACert == "" && b.CAFile == "" {
		if b.CAFile = values.CAPathInPod(); b.CAFile == "" {
			return fmt.Errorf("--ca-file: the gateways' pods need the CA of Usher's certificate for %s, and these values put none into them; "+
				"set --ca-file to its PEM file, such as ca.crt of the Secret with Usher's certificate", b.XDSAddr)
		}
	}
	return nil
}
