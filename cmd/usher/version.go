package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
)

// version replaces the version that Go records. Builds without git set it: -ldflags "-X main.version=v1.2.3".
var version string

// build says which Usher this is.
type build struct {
	Version   string `json:"version"`
	Commit    string `json:"commit,omitempty"`
	GoVersion string `json:"goVersion"`
	Platform  string `json:"platform"`
}

// thisBuild returns the build of the running binary.
func thisBuild() build {
	info, ok := debug.ReadBuildInfo()
	if !ok { // only without modules
		info = &debug.BuildInfo{}
	}
	return buildOf(info, version)
}

// buildOf reads a build from what Go records: a version by "go install …@v1.2.3" or from the tags of git, and a
// commit if the binary was built in a checkout. If version is not empty, it wins.
func buildOf(info *debug.BuildInfo, version string) build {
	b := build{
		Version:   cmp.Or(version, strings.Trim(info.Main.Version, "()"), "devel"),
		GoVersion: runtime.Version(),
		Platform:  runtime.GOOS + "/" + runtime.GOARCH,
	}
	changed := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.modified":
			changed = s.Value == "true"
		}
	}
	if changed {
		b.Commit += "-dirty"
	}
	return b
}

// String returns the line that usher version prints.
func (b build) String() string {
	return fmt.Sprintf("usher %s (%s, %s, %s)", b.Version, cmp.Or(b.Commit, "unknown commit"), b.GoVersion, b.Platform)
}

// logged returns the keys and values by which the log says which Usher this is.
func (b build) logged() []any {
	return []any{"version", b.Version, "commit", cmp.Or(b.Commit, "unknown"), "go", b.GoVersion}
}

// metric returns usher_build_info, whose labels say which Usher runs.
func (b build) metric() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "usher_build_info",
		Help:        "Which Usher this is, in the labels. The value is always 1.",
		ConstLabels: prometheus.Labels{"version": b.Version, "revision": b.Commit, "goversion": b.GoVersion},
	}, func() float64 { return 1 })
}

func versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version, the commit, and the Go release and platform that this binary is built with and for.",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(thisBuild())
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), thisBuild())
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "Print JSON.")
	return cmd
}
