package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/usherproxy/usher/internal/probe"
)

// probeOptions are the flags of usher probe.
type probeOptions struct {
	probe.Options
	source, expect, output string
}

// The exit statuses of usher probe.
const (
	probeUnknown  = 1 // there is no mode to compare
	probeMismatch = 2 // the listener does not do what --expect says
)

func probeCommand() *cobra.Command {
	o := probeOptions{Options: probe.Options{Version: thisBuild().Version}}
	cmd := &cobra.Command{
		Use:   "probe HOST:PORT",
		Short: "Find out what a listener does with PROXY headers, and what clients see through a load balancer.",
		Long: `Probe opens about ten connections to a listener, with and without a PROXY
header, over TLS if it needs TLS. From the answers it concludes which mode the
listener has, and says what clients see through a load balancer that sends
headers, and through one that sends none.

Probe the gateway itself, and not the load balancer in front of it. A name with
several addresses is probed at each, one after the other, up to eight.

The gateway's access log shows the probes. Their user agent is
usher-probe/VERSION, and the client in their headers is 192.0.2.117 or
2001:db8::117 (--source). A listener without trusted_cidrs believes that. The
service gets the requests that are accepted, and a tcp service without PROXY
protocol gets the headers as data.

Exit status:
  0  The listener's mode is known, and it is the one of --expect.
  1  The mode is not known: no connection, or answers that fit no mode; or the
     addresses of the name have different modes.
  2  The listener has another mode than --expect says.`,
		Example: "  usher probe --host www.example.com gateway.example.com:8080\n" +
			"  usher probe --expect strict --output json 198.51.100.20:8443",
		Args: func(_ *cobra.Command, args []string) error { return o.complete(args) },
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	o.register(cmd)
	return cmd
}

// register adds all flags of usher probe.
func (o *probeOptions) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.Host, "host", "", "Host of the request, and server name of the TLS handshake. Default: HOST:PORT.")
	f.StringVar(&o.Path, "path", "", "Path of the request. Default: /.")
	f.StringVar(&o.Method, "method", "", "Method of the request. Default: GET.")
	f.BoolVar(&o.TCP, "tcp", false, "Send a line of text instead of an HTTP request, for tcp listeners.")
	f.BoolVar(&o.TLS, "tls", false, "Speak TLS only. Default: without TLS first, and with it if nothing is served without. No certificate is checked.")
	f.StringVar(&o.source, "source", "", "Client address in the PROXY headers. Default: 192.0.2.117, or 2001:db8::117 for an IPv6 address.")
	f.DurationVar(&o.Timeout, "timeout", 3*time.Second, "How long to wait for each answer.")
	f.StringVar(&o.expect, "expect", "", "Mode that the listener should have: off, permissive or strict.")
	f.StringVarP(&o.output, "output", "o", "text", "Format of the output: text or json.")
}

// complete checks the flags and sets the target.
func (o *probeOptions) complete(args []string) error {
	modes := []string{"", string(probe.Off), string(probe.Permissive), string(probe.Strict)}
	if !slices.Contains(modes, o.expect) {
		return fmt.Errorf("--expect %q is unknown; use off, permissive or strict", o.expect)
	}
	if o.output != "text" && o.output != "json" {
		return fmt.Errorf("--output %q is unknown; use text or json", o.output)
	}
	if o.source != "" {
		ip, err := netip.ParseAddr(o.source)
		if err != nil || ip.Zone() != "" {
			return fmt.Errorf("--source %q is not an IP address; use one such as 192.0.2.117", o.source)
		}
		o.Source = ip
	}
	o.Target = strings.Join(args, " ") // several are one that is wrong
	return o.Check()
}

// run probes and prints the report.
func (o *probeOptions) run(cmd *cobra.Command) error {
	report, err := o.Run(cmd.Context())
	if err != nil {
		return err
	}
	if o.output == "json" {
		encoder := json.NewEncoder(cmd.OutOrStdout())
		encoder.SetIndent("", "  ")
		err = encoder.Encode(report)
	} else {
		err = report.Text(cmd.OutOrStdout(), o.Timeout)
	}
	if err != nil {
		return err
	}
	return o.compare(report)
}

// compare returns an error if the mode is not known, or not the one of --expect.
func (o *probeOptions) compare(r *probe.Report) error {
	modes := r.Modes()
	switch {
	case o.expect != "" && slices.ContainsFunc(modes, func(mode string) bool { return mode != "" && mode != o.expect }):
		return exitError{probeMismatch, fmt.Errorf("--expect %s: %s", o.expect, r.Summary())}
	case len(modes) == 0 || slices.Contains(modes, ""):
		return exitError{probeUnknown, fmt.Errorf("the mode is not known: %s", r.Summary())}
	case len(modes) > 1:
		return exitError{probeUnknown, fmt.Errorf("the modes differ: %s", strings.Join(modes, ", "))}
	}
	return nil
}
