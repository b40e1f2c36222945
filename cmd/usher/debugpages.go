package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/pprof"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/redaction"
	"github.com/usherproxy/usher/internal/resourcediff"
	"github.com/usherproxy/usher/xds"
)

// maxDebugTime is how long a page below /debug may take to be written. The profiles add the time that they measure.
const maxDebugTime = 2 * time.Minute

// gatewaysPath lists the gateways.
const gatewaysPath = "/debug/gateways"

// debugPage is a page below /debug.
type debugPage struct {
	path, query string
	shows       string
	handler     http.Handler
}

// debugPages returns the pages, in the order of the index.
func debugPages(d debugHandlers) []debugPage {
	return []debugPage{
		{gatewaysPath, "", "the gateways that Usher watches now", redactedPage(d.gateways)},
		{"/debug/snapshot", "?gateway=NAME", "what Usher knows of a gateway", redactedPage(d.snapshot)},
		{
			"/debug/resources", "?gateway=NAME[&envoy=SERVICE-ID]",
			"what the gateway's Envoys got last; a collection that several Envoys share is there once", redactedPage(d.resources),
		},
		{"/debug/process", "", "build, flags and environment", redactedPage(d.process)},
		{"/debug/config", "", "the config file, and a list of the files in --config-dir", redactedPage(d.config)},
		{"/debug/log", "", fmt.Sprintf("the last lines of the log, %d at most", maxRecentLines), http.HandlerFunc(d.lines)},
	}
}

// pprofPages are the profiles that pprof's index does not serve itself.
var pprofPages = []debugPage{
	{path: "/debug/pprof/", shows: "profiles for go tool pprof", handler: http.HandlerFunc(pprof.Index)},
	{path: "/debug/pprof/cmdline", handler: http.HandlerFunc(commandLine)},
	{path: "/debug/pprof/profile", handler: http.HandlerFunc(pprof.Profile)},
	{path: "/debug/pprof/symbol", handler: http.HandlerFunc(pprof.Symbol)},
	{path: "/debug/pprof/trace", handler: http.HandlerFunc(pprof.Trace)},
}

// addDebug adds the pages below /debug that show gateways and this process. Call it before run.
func (a *admin) addDebug(d debugHandlers) {
	pages := debugPages(d)
	for _, p := range pages {
		a.handleDebug("GET "+p.path, p.handler)
	}
	a.handleDebug("GET /debug/{$}", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "No page shows private keys, tokens, or values of headers and cookies that are secret.")
		for _, p := range append(pages, pprofPages[0]) {
			fmt.Fprintf(w, "\n%s%s\n  %s\n", p.path, p.query, p.shows)
		}
	}))
}

// commandLine answers as pprof.Cmdline does, without passwords.
func commandLine(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprint(w, redaction.Text(strings.Join(os.Args, "\x00")))
}

// pageError is an answer other than 200.
type pageError struct {
	status int
	text   string
}

// redactedPage answers with what page returns, as JSON without secrets.
func redactedPage(page func(*http.Request) (any, *pageError)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, bad := page(r)
		if bad != nil {
			http.Error(w, bad.text, bad.status)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if err := writeRedacted(w, content); err != nil {
			panic(http.ErrAbortHandler) // so that the caller does not take the part for the whole
		}
	})
}

// debugHandlers are the pages.
type debugHandlers struct {
	plane interface {
		States() []controlplane.GatewayState
		State(id gateway.ID) (state controlplane.GatewayState, watched bool)
	}
	log     *recentLog
	options serveOptions
}

// gateways lists the gateways.
func (d debugHandlers) gateways(*http.Request) (any, *pageError) {
	list := []gatewaySummary{}
	for _, s := range d.plane.States() {
		list = append(list, summaryOf(s))
	}
	return list, nil
}

// gatewaySummary is an item of the list at /debug/gateways.
type gatewaySummary struct {
	Gateway     string `json:"gateway"`
	HasSnapshot bool   `json:"has_snapshot"`
	Listeners   int    `json:"listeners"` // of its entry
	Instances   int    `json:"instances"` // that are registered
	Envoys      int    `json:"envoys"`    // that are connected and have got something
}

func summaryOf(s controlplane.GatewayState) gatewaySummary {
	of := gatewaySummary{Gateway: s.ID.String(), HasSnapshot: s.Snapshot != nil}
	if s.Snapshot != nil {
		of.Instances = len(s.Snapshot.Instances)
		if s.Snapshot.Entry != nil {
			of.Listeners = len(s.Snapshot.Entry.Listeners)
		}
	}
	for _, set := range s.Sets {
		of.Envoys += len(set.Connected)
	}
	return of
}

// stateOf returns the state of the gateway that a request names.
func (d debugHandlers) stateOf(r *http.Request) (controlplane.GatewayState, *pageError) {
	name := r.URL.Query().Get("gateway")
	id, ok := gateway.ParseID(name)
	if !ok {
		return controlplane.GatewayState{}, &pageError{
			http.StatusBadRequest,
			fmt.Sprintf("gateway=%q: add ?gateway= with the NAME of a gateway, or its PARTITION/NAMESPACE/NAME; /debug/gateways lists them", name),
		}
	}
	state, watched := d.plane.State(id)
	if !watched {
		var known []string
		for _, s := range d.plane.States() {
			known = append(known, s.ID.String())
		}
		return state, &pageError{
			http.StatusNotFound,
			fmt.Sprintf("Usher does not watch a gateway %q%s; it watches those with an Envoy and those of --gateway, and /debug/gateways lists them", name, problem.DidYouMean(name, known)),
		}
	}
	return state, nil
}

// snapshot shows what is known of a gateway.
func (d debugHandlers) snapshot(r *http.Request) (any, *pageError) {
	state, bad := d.stateOf(r)
	if bad != nil {
		return nil, bad
	}
	if state.Snapshot == nil {
		return nil, &pageError{http.StatusNotFound, fmt.Sprintf("nothing is known of the gateway %q yet; /readyz and the log say why", state.ID)}
	}
	return snapshotFields(state.Snapshot), nil
}

// snapshotFields are the fields of a snapshot. Those that are large are lazy.
func snapshotFields(s *gateway.Snapshot) lazyObject {
	return func(yield func(string, any) bool) {
		// The fields here hide those of the snapshot that JSON cannot have.
		rest := struct {
			*gateway.Snapshot
			Chains, Endpoints, Balancers, Problems *struct{} `json:",omitempty"`
		}{Snapshot: s}
		_ = yield("snapshot", rest) &&
			yield("chains", sortedFields(s.Chains, gateway.ServiceName.String)) &&
			yield("endpoints", lazyObject(func(yield func(string, any) bool) {
				for id, e := range s.Endpoints.All() {
					if !yield(id, e) {
						return
					}
				}
			})) &&
			yield("balancers", sortedFields(s.Balancers, func(of gateway.KubernetesService) string { return of.Namespace + "/" + of.Name })) &&
			yield("problems", s.Problems)
	}
}

// sortedFields returns the fields of a map, sorted by the names of its keys.
func sortedFields[K comparable, V any](m map[K]V, nameOf func(K) string) lazyObject {
	byName := map[string]V{}
	for key, value := range m {
		byName[nameOf(key)] = value
	}
	return func(yield func(string, any) bool) {
		for _, name := range slices.Sorted(maps.Keys(byName)) {
			if !yield(name, byName[name]) {
				return
			}
		}
	}
}

// resources shows what the gateway's Envoys got.
func (d debugHandlers) resources(r *http.Request) (any, *pageError) {
	state, bad := d.stateOf(r)
	if bad != nil {
		return nil, bad
	}
	envoy := r.URL.Query().Get("envoy")
	var sets []controlplane.SetState
	var known []string
	for _, set := range state.Sets {
		known = append(known, set.ServiceID)
		if envoy == "" || set.ServiceID == envoy {
			sets = append(sets, set)
		}
	}
	if envoy != "" && len(sets) == 0 {
		return nil, &pageError{
			http.StatusNotFound,
			fmt.Sprintf("no Envoy of the gateway %q with the service ID %q has got anything%s; without &envoy= the page has all", state.ID, envoy, problem.DidYouMean(envoy, known)),
		}
	}
	return resourceSets(sets), nil
}

// resourceSets is a list with what Envoys got. A collection that an earlier item has is not repeated.
func resourceSets(sets []controlplane.SetState) lazyList {
	return func(yield func(any) bool) {
		shown := map[*xds.Collection]string{}
		for _, s := range sets {
			if !yield(resourceSet(s, shown)) {
				return
			}
		}
	}
}

// resourceSet is an item of resourceSets: an Envoy, and its resources as usher render prints them.
func resourceSet(s controlplane.SetState, shown map[*xds.Collection]string) lazyObject {
	return func(yield func(string, any) bool) {
		connected := []string{}
		for _, peer := range s.Connected {
			address := "unix socket"
			if peer.IsValid() {
				address = peer.String()
			}
			connected = append(connected, address)
		}
		if !yield("service_id", s.ServiceID) || !yield("node", s.Node) || !yield("release", s.Envoy.String()) ||
			!yield("connected", connected) || !yield("held_back", heldBack(s.Set)) {
			return
		}
		for _, t := range renderedTypes {
			c := s.Set.Collection(t.Type)
			if c == nil || c.Len() == 0 {
				continue
			}
			var content any = collection(c)
			if first := shown[c]; first != "" {
				content = map[string]string{"same_as": first}
			}
			shown[c] = cmp.Or(shown[c], s.ServiceID)
			if !yield(t.name, content) {
				return
			}
		}
	}
}

// heldBack returns the names of the resources that are held back, each after its type.
func heldBack(set *xds.Set) []string {
	return append([]string{}, controlplane.InstancePreview{Set: set}.HeldBack()...)
}

// collection is a list of resources.
func collection(c *xds.Collection) lazyList {
	return func(yield func(any) bool) {
		for name, r := range c.All() {
			tree, err := treeOfResource(r)
			var content any = err
			if err == nil {
				content = named(name, tree)
			}
			if !yield(content) {
				return
			}
		}
	}
}

func treeOfResource(r *xds.Resource) (resourcediff.Tree, error) {
	body, err := r.Body()
	if err != nil {
		return nil, err
	}
	return resourcediff.Render(body)
}

// lines are the last lines of the log.
func (d debugHandlers) lines(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	for _, line := range d.log.all() {
		if _, err := io.WriteString(w, redaction.Text(string(line))); err != nil {
			return
		}
	}
}
