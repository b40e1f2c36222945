//go:build e2e

package chaos

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/e2e/lab"
)

// desired is what Consul and the config files should say, as far as it changes in a run.
type desired struct {
	mode      string // of all listeners, in proxy-defaults
	innerMode string // of those of the gateway "inner", in the config files

	mark     bool // a header of responses
	extra    bool // one more listener
	redirect bool // web leads to web-b
	router   bool // web has a router
	patient  bool // web has another connect timeout
	second   bool // the second instance of web is registered

	invalidMode   bool // proxy-defaults has a mode that does not exist
	invalidHeader bool // an ingress-gateway entry has a header with an operator that does not exist
}

// file is the content of the config files.
func (d desired) file() string {
	return fmt.Sprintf(`usher {
  access_log {
    sinks           = [{ type = "stdout" }]
    status_at_least = 400
  }
  listeners {
    "%d" { proxy_protocol { upstream = "v2" } }
  }
}
gateway "inner" {
  usher { proxy_protocol { mode = %q } }
}
`, lab.TCPPort, d.innerMode)
}

// entries are all config entries, in an order in which Consul accepts them.
func (d desired) entries() []api.ConfigEntry {
	mode := d.mode
	if d.invalidMode {
		mode = "sometimes"
	}
	entries := []api.ConfigEntry{&api.ProxyConfigEntry{
		Kind: api.ProxyDefaults, Name: api.ProxyConfigGlobal,
		Config: map[string]any{"usher": map[string]any{"proxy_protocol": map[string]any{"mode": mode}}},
	}}
	for _, name := range []string{"web", "web-b", "tcp"} {
		protocol := "http"
		if name == "tcp" {
			protocol = "tcp"
		}
		entries = append(entries, &api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: name, Protocol: protocol}, &api.ServiceIntentionsConfigEntry{
			Kind: api.ServiceIntentions, Name: name,
			Sources: []*api.SourceIntention{{Name: "edge", Action: api.IntentionActionAllow}, {Name: "inner", Action: api.IntentionActionAllow}},
		})
	}
	resolver := &api.ServiceResolverConfigEntry{Kind: api.ServiceResolver, Name: "web", ConnectTimeout: 5 * time.Second}
	if d.patient {
		resolver.ConnectTimeout = 7 * time.Second
	}
	if d.redirect {
		resolver.Redirect = &api.ServiceResolverRedirect{Service: "web-b"}
	}
	entries = append(entries, resolver)
	if d.router {
		entries = append(entries, &api.ServiceRouterConfigEntry{Kind: api.ServiceRouter, Name: "web", Routes: []api.ServiceRoute{{
			Match:       &api.ServiceRouteMatch{HTTP: &api.ServiceRouteHTTPMatch{PathPrefix: lab.LoadPrefix}},
			Destination: &api.ServiceRouteDestination{RequestTimeout: 20 * time.Second},
		}}})
	}
	return append(entries, d.gateway("edge"), d.gateway("inner"))
}

func (d desired) gateway(name string) api.ConfigEntry {
	web := api.IngressService{Name: "web", Hosts: []string{lab.ServiceHost}}
	if d.mark {
		web.ResponseHeaders = &api.HTTPHeaderModifiers{Set: map[string]string{"X-Mark": "yes"}}
	}
	if d.invalidHeader && name == "edge" {
		web.ResponseHeaders = &api.HTTPHeaderModifiers{Set: map[string]string{"X-Mark": "%NOPE%"}}
	}
	entry := &api.IngressGatewayConfigEntry{Kind: api.IngressGateway, Name: name, Listeners: []api.IngressListener{
		{Port: httpPort, Protocol: "http", Services: []api.IngressService{web}},
		{Port: httpsPort, Protocol: "http", TLS: &api.GatewayTLSConfig{Enabled: true}, Services: []api.IngressService{web}},
		{Port: lab.TCPPort, Protocol: "tcp", Services: []api.IngressService{{Name: "tcp"}}},
	}}
	if d.extra {
		entry.Listeners = append(entry.Listeners, api.IngressListener{Port: extraPort, Protocol: "http", Services: []api.IngressService{web}})
	}
	return entry
}

// writeWanted brings Consul from what was written to what is wanted.
func (w *world) writeWanted() {
	w.t.Helper()
	wanted := map[string]api.ConfigEntry{}
	for _, e := range w.want.entries() {
		key := e.GetKind() + "/" + e.GetName()
		wanted[key] = e
		if !same(w.written[key], e) {
			w.write("write "+key, func(c *api.Client, o *api.WriteOptions) error {
				_, _, err := c.ConfigEntries().Set(e, o)
				return err
			})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(w.written)) {
		if e := w.written[key]; wanted[key] == nil {
			w.write("delete "+key, func(c *api.Client, o *api.WriteOptions) error {
				_, err := c.ConfigEntries().Delete(e.GetKind(), e.GetName(), o)
				return err
			})
		}
	}
	w.written = wanted
	second := w.second()
	switch was := w.registered[second.id]; {
	case w.want.second && !was:
		w.register(second, httpPort)
	case !w.want.second && was:
		w.deregister(second)
	}
	w.registered[second.id] = w.want.second
}

func same(a, b api.ConfigEntry) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}

// writeFile gives an Usher the config file that is wanted, whole.
func (w *world) writeFile(u *usher) {
	if u.invalidFile {
		return // the end of that fault will
	}
	next := u.ConfigFile + ".next"
	if err := os.WriteFile(next, []byte(w.want.file()), 0o644); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(next, u.ConfigFile); err != nil {
		w.t.Fatal(err)
	}
}
