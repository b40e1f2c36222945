package doctor

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/probe"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/status"
)

// Facts are what is known about a gateway and what is in front of it, at one moment.
type Facts struct {
	Now     time.Time
	Gateway gateway.ID // without a name: it is not known which
	// Port is that of the listener; 0: it is not known.
	Port int
	// EnvoyAdmin is the address of Envoy's admin interface, for commands.
	EnvoyAdmin string

	Listener    Source[probe.Report]      // of the gateway itself
	Balancer    Source[probe.Report]      // through the load balancer
	Consul      Source[consul.Inspection] // with Usher's token
	Plan        Source[Plan]              // what Usher would serve, by Consul, Kubernetes and the config file
	Envoy       Source[Envoy]
	Usher       Source[Usher]
	Certificate Source[Certificate] // of Usher's port for Envoys
	Chart       Source[Chart]
}

// Source is one place where facts come from.
type Source[T any] struct {
	Name  string // such as "Envoy's counters"
	Flag  string // the flag or argument that names it
	Asked bool   // it was named, so that it is an error if it does not answer
	Facts *T     // nil: there are none
	Err   error  // why there are none; nil if the source was not asked
}

// Plan is what Usher would serve an instance of the gateway.
type Plan struct {
	Problems []problem.Problem
	// Service is the one in Kubernetes in front of the instance; the zero value if there is none, or without a cluster.
	Service gateway.KubernetesService
	// ServiceModes are the modes that follow from the Service, by the listener's port; empty while they are not known.
	ServiceModes map[int]settings.Mode
}

// Envoy is what the admin interface of the gateway's Envoy shows. The counters are from two moments, before anything
// is probed.
type Envoy struct {
	Release   string // such as "1.36.2"
	ServiceID string // node.id
	Gateway   gateway.ID
	// XDS is whether its stream to its control plane is open.
	XDS           bool
	Before, After map[string]uint64
	Over          time.Duration // between the two moments
}

// Usher is what an Usher's admin port shows.
type Usher struct {
	status.State
	// Before and After are the connections that Envoys have reported, at two moments.
	Before, After map[Reported]uint64
	// HeadersOnly are the ports of the gateways' listeners whose connections have all begun with a header for ten minutes.
	HeadersOnly map[GatewayPort]bool
}

// GatewayPort is the port of a gateway's listener.
type GatewayPort struct {
	Gateway string
	Port    int
}

// Reported is a type of connections that Envoys report, as in usher_reported_connections_total.
type Reported struct {
	GatewayPort
	Type string
}

// Certificate is one that a port shows.
type Certificate struct {
	Names               []string
	NotBefore, NotAfter time.Time
}

// Chart is the release of consul-k8s that runs.
type Chart struct {
	Image string // of the controller that registers gateways
	// TooOld says why gateways cannot get a bootstrap from it, and what to do; empty if they can.
	TooOld string
}

// gatewayName is the gateway's name for texts and settings.
func (f *Facts) gatewayName() string {
	if f.Gateway.Name == "" {
		return "NAME"
	}
	return f.Gateway.Name
}

// listener names the listener in texts.
func (f *Facts) listener() string { return "listener " + strconv.Itoa(f.Port) }

// probed is the conclusion about the listener at its first address; false if it was not probed.
func (f *Facts) probed() (probe.Result, bool) { return firstResult(f.Listener) }

func firstResult(s Source[probe.Report]) (probe.Result, bool) {
	if s.Facts == nil || len(s.Facts.Results) == 0 {
		return probe.Result{}, false
	}
	return s.Facts.Results[0], true
}

// setMode returns the remedy that gives the listener a mode. A command changes the line of a file that has the mode now.
// There is none if the line is for other listeners, too, or may be: strict closes their connections. In JSON, a line can
// have everything.
func (f *Facts) setMode(text, mode string) Remedy {
	for _, l := range f.usherListeners() {
		file, line, ok := fileAndLine(l.Place)
		if !ok || l.Asked == "" || l.Asked == mode {
			continue
		}
		if mode == string(settings.Strict) || f.othersAt(l.Place) || isJSON(file) {
			return f.setting(text+" The mode is set in "+l.Place+". If that line is for this listener alone, change it there. Otherwise keep it, because it sets the mode of others, too.", fmt.Sprintf("mode = %q", mode))
		}
		return Remedy{
			Text: text + " The mode is set in " + l.Place + ". This changes it for all listeners that the line is about.",
			// A key in JSON has quotes, so that this does not find it: one line can have everything.
			Command: fmt.Sprintf(`sed -i --follow-symlinks '%s s/\(mode[[:space:]]*[=:][[:space:]]*"\{0,1\}\)%s/\1%s/' %s`,
				line, l.Asked, mode, quoteForShell(file)),
		}
	}
	return f.setting(text, fmt.Sprintf("mode = %q", mode))
}

// othersAt reports whether Usher has other listeners whose mode is set in a place.
func (f *Facts) othersAt(place string) bool {
	return slices.ContainsFunc(f.Usher.Facts.Gateways, func(g status.Gateway) bool {
		return slices.ContainsFunc(g.Listeners, func(l status.Listener) bool {
			return l.Place == place && (g.Name != f.Gateway.String() || l.Port != f.Port)
		})
	})
}

// setting returns the remedy that gives the listener settings of proxy_protocol.
func (f *Facts) setting(text, inner string) Remedy {
	return Remedy{
		Text: text + " Add this to Usher's config file (--config). If the file has a block for this gateway already, put the setting into that block.",
		HCL:  block(f.gatewayName(), f.Port, inner),
	}
}

// block is the block of the config file that gives a gateway's listener settings of proxy_protocol.
func block(gatewayName string, port int, inner string) string {
	return fmt.Sprintf("gateway %q {\n  usher {\n    listeners {\n      \"%d\" { proxy_protocol { %s } }\n    }\n  }\n}\n", gatewayName, port, inner)
}

var filePlace = regexp.MustCompile(`^(.+):([0-9]+)$`)

// fileAndLine splits a place in a file.
func fileAndLine(place string) (file, line string, ok bool) {
	m := filePlace.FindStringSubmatch(place)
	if m == nil {
		return "", "", false
	}
	return m[1], m[2], true
}

// isJSON reports whether a file's name says that it is JSON.
func isJSON(file string) bool { return filepath.Ext(file) == ".json" }

// quoteForShell returns a word for a POSIX shell.
func quoteForShell(word string) string {
	if regexp.MustCompile(`^[A-Za-z0-9_./:-]+$`).MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
