package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/usherproxy/usher/internal/adminport"
	"github.com/usherproxy/usher/internal/envoyadmin"
	"github.com/usherproxy/usher/internal/redaction"
	"github.com/usherproxy/usher/internal/resourcediff"
	"github.com/usherproxy/usher/internal/supportbundle"
)

const (
	maxBundlePart = 32 << 20  // bytes of a file in a bundle
	maxBundle     = 512 << 20 // bytes of all files in it, before they are compressed
)

// bundleOptions are the flags of usher support-bundle.
type bundleOptions struct {
	adminAddr, out        string
	envoys                []string
	configFile, configDir string
	timeout               time.Duration
}

func supportBundleCommand() *cobra.Command {
	var o bundleOptions
	cmd := &cobra.Command{
		Use:   "support-bundle",
		Short: "Collect what others need to find out what is wrong into one archive, without secrets.",
		Long: "Support-bundle asks a running Usher at its admin port, and writes a .tar.gz with its build, flags, environment,\n" +
			"configuration, problems, metrics, last log lines, goroutines and heap, and what it knows of each gateway and sends\n" +
			"to its Envoys. With --envoy-admin, it asks Envoys, too. Private keys, tokens, and values of headers and cookies\n" +
			"that are secret are left out; names, addresses and certificates are not.\n\n" +
			"The file manifest.json in the archive says what is there, and what could not be had and why. That does not change\n" +
			"the exit status, which is 1 if there is no archive, else 0.",
		Example: "  usher support-bundle\n" +
			"  usher support-bundle --envoy-admin http://127.0.0.1:19000 -o /tmp/usher.tar.gz\n" +
			"  kubectl exec -n consul deploy/usher -- usher support-bundle -o - > usher.tar.gz",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return o.run(ctx, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.adminAddr, "admin-addr", "127.0.0.1:18001", "Admin port of the running Usher: host:port or a URL. "+
		"It shows most things only to callers on the same machine.")
	f.StringVarP(&o.out, "output", "o", "", "File to write, which must not exist, or - for stdout. Default: usher-support-<time>.tar.gz in this directory.")
	f.StringArrayVar(&o.envoys, "envoy-admin", nil, "Also ask the Envoy whose admin interface is at this URL. You can give several.")
	f.StringVar(&o.configFile, "config", "", "Config file of an Usher that does not run. A running one says where its own is.")
	f.StringVar(&o.configDir, "config-dir", "", "Directory with config entries of an Usher that does not run.")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "How long to wait for each answer.")
	return cmd
}

// check returns an error if the value of a flag is out of bounds.
func (o *bundleOptions) check() error {
	if o.timeout < time.Second {
		return fmt.Errorf("--timeout %v: it must be at least 1s; use a duration such as 30s", o.timeout)
	}
	return nil
}

// run writes the archive, and says what is missing.
func (o *bundleOptions) run(ctx context.Context, stdout, stderr io.Writer) error {
	now := time.Now().UTC().Truncate(time.Second)
	options := supportbundle.Options{
		Dir: "usher-support-" + now.Format("20060102T150405Z"), Version: thisBuild().String(), Created: now,
		PartSize: maxBundlePart, Size: maxBundle, Timeout: o.timeout,
	}
	name := o.out
	if name == "" {
		name = options.Dir + ".tar.gz"
	}
	write := func(to io.Writer) (supportbundle.Manifest, error) {
		return supportbundle.Write(ctx, to, o.parts(ctx), options)
	}
	var m supportbundle.Manifest
	var err error
	if name == "-" {
		m, err = write(stdout)
	} else {
		m, err = toNewFile(name, write)
	}
	if err != nil {
		return err
	}
	files := 1 // the manifest
	for _, f := range m.Files {
		if !f.Missing {
			files++
		}
	}
	for _, line := range problemLines(m) {
		fmt.Fprintln(stderr, line)
	}
	if name != "-" {
		fmt.Fprintf(stderr, "wrote %s with %d files; look through it before you give it away: it has names, addresses and certificates\n", name, files)
	}
	return nil
}

// problemLines returns a line for each problem in a manifest, with the names of the files that have it.
func problemLines(m supportbundle.Manifest) (lines []string) {
	names := map[string][]string{}
	var problems []string
	for _, f := range m.Files {
		if f.Problem == "" {
			continue
		}
		if names[f.Problem] == nil {
			problems = append(problems, f.Problem)
		}
		names[f.Problem] = append(names[f.Problem], f.Name)
	}
	for _, p := range problems {
		lines = append(lines, strings.Join(names[p], ", ")+": "+p)
	}
	return lines
}

// toNewFile writes a file that only its owner may read. If it cannot be written as a whole, it is removed.
func toNewFile(name string, write func(io.Writer) (supportbundle.Manifest, error)) (m supportbundle.Manifest, err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return m, fmt.Errorf("--output %s: the file exists, and Usher overwrites nothing; remove it, or choose another name", name)
	}
	if err != nil {
		return m, fmt.Errorf("--output: %w", err)
	}
	m, err = write(f)
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(name)
	}
	return m, err
}

// parts are the files of the archive.
func (o *bundleOptions) parts(ctx context.Context) iter.Seq[supportbundle.Part] {
	return func(yield func(supportbundle.Part) bool) {
		for _, parts := range []iter.Seq[supportbundle.Part]{o.ofCommand, o.ofUsher, o.ofGateways(ctx), o.ofEnvoys} {
			for p := range parts {
				if !yield(p) {
					return
				}
			}
		}
	}
}

// ofCommand are what this process knows itself.
func (o *bundleOptions) ofCommand(yield func(supportbundle.Part) bool) {
	redacted := func(value any) func(context.Context, io.Writer) error {
		return func(_ context.Context, to io.Writer) error { return writeRedacted(to, value) }
	}
	if !yield(supportbundle.Part{Name: "command.json", From: "this command", Collect: redacted(thisProcess(nil))}) {
		return
	}
	if o.configFile != "" || o.configDir != "" {
		yield(supportbundle.Part{Name: "config.json", From: "--config and --config-dir", Collect: redacted(configReport(o.configFile, o.configDir))})
	}
}

// usherPages are what each Usher answers.
var usherPages = []struct {
	name, path string
	also       []int // statuses besides 200
}{
	{"usher/process.json", "/debug/process", nil},
	{"usher/readyz.txt", "/readyz", []int{http.StatusServiceUnavailable}},
	{"usher/status.json", "/status", nil},
	{"usher/envoys.json", envoysPath, nil},
	{"usher/gateways.json", gatewaysPath, nil},
	{"usher/config.json", "/debug/config", nil},
	{"usher/metrics.txt", "/metrics", nil},
	{"usher/log.txt", "/debug/log", nil},
	{"usher/goroutines.txt", "/debug/pprof/goroutine?debug=1", nil},
	{"usher/heap.pb.gz", "/debug/pprof/heap", nil},
}

// ofUsher are what the running Usher says of itself.
func (o *bundleOptions) ofUsher(yield func(supportbundle.Part) bool) {
	for _, page := range usherPages {
		if !yield(o.usherPage(page.name, page.path, page.also...)) {
			return
		}
	}
}

// usher is a client of the running Usher.
func (o *bundleOptions) usher() adminport.Client { return adminport.New(o.adminAddr, adminport.Usher) }

// usherPage is a page of Usher's admin port. Its JSON has no secrets.
func (o *bundleOptions) usherPage(name, path string, also ...int) supportbundle.Part {
	return supportbundle.Part{Name: name, From: o.usher().String() + path, Collect: func(ctx context.Context, to io.Writer) error {
		if strings.HasSuffix(name, ".txt") {
			return copyRedactedText(ctx, o.usher(), path, to, also...)
		}
		return o.usher().Copy(ctx, path, to, also...)
	}}
}

// ofGateways are what the running Usher knows of its gateways.
func (o *bundleOptions) ofGateways(ctx context.Context) iter.Seq[supportbundle.Part] {
	return func(yield func(supportbundle.Part) bool) {
		ctx, cancel := context.WithTimeout(ctx, o.timeout)
		defer cancel()
		var gateways []gatewaySummary
		if err := o.usher().GetJSON(ctx, gatewaysPath, &gateways); err != nil {
			return // the manifest says why gatewaysPath could not be read
		}
		for _, g := range gateways {
			if !filepath.IsLocal(g.Gateway) || filepath.Clean(g.Gateway) == "." { // no gateway of Consul has such a name
				continue
			}
			dir, query := "gateways/"+url.PathEscape(g.Gateway)+"/", "?gateway="+url.QueryEscape(g.Gateway)
			if !yield(o.usherPage(dir+"snapshot.json", "/debug/snapshot"+query)) || !yield(o.usherPage(dir+"resources.json", "/debug/resources"+query)) {
				return
			}
		}
	}
}

// envoyPages are what each Envoy answers.
var envoyPages = []struct {
	name, path string
	copy       func(ctx context.Context, envoy adminport.Client, path string, to io.Writer, also ...int) error
}{
	{"server_info.json", "/server_info", copyRedactedJSON},
	{"config_dump.json", "/config_dump", copyRedactedJSON},
	{"stats.txt", "/stats", copyRedactedText},
	{"clusters.txt", "/clusters", copyRedactedText},
	{"listeners.txt", "/listeners", copyRedactedText},
}

// ofEnvoys are what Envoys say of themselves.
func (o *bundleOptions) ofEnvoys(yield func(supportbundle.Part) bool) {
	for i, address := range o.envoys {
		envoy := envoyadmin.New(address)
		envoy.Limit = maxBundlePart // a part of an answer cannot be redacted
		for _, page := range envoyPages {
			collect := func(ctx context.Context, to io.Writer) error { return page.copy(ctx, envoy.Client, page.path, to) }
			if !yield(supportbundle.Part{Name: fmt.Sprintf("envoy-%d/%s", i+1, page.name), From: envoy.String() + page.path, Collect: collect}) {
				return
			}
		}
	}
}

// copyRedactedJSON writes a page of JSON without secrets.
func copyRedactedJSON(ctx context.Context, envoy adminport.Client, path string, to io.Writer, _ ...int) error {
	var tree resourcediff.Tree
	if err := envoy.GetJSON(ctx, path, &tree); err != nil {
		return err
	}
	return writeRedacted(to, tree)
}

// copyRedactedText writes a page of text without secrets. A part of one may end within a secret, and is left out.
func copyRedactedText(ctx context.Context, of adminport.Client, path string, to io.Writer, also ...int) error {
	of.Limit = maxBundlePart
	var text bytes.Buffer
	if err := of.Copy(ctx, path, &text, also...); err != nil {
		return err
	}
	_, err := io.WriteString(to, redaction.Text(text.String()))
	return err
}
