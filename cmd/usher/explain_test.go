package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

func TestExplainNamesTheOriginOfEachSetting(t *testing.T) {
	newFiles(t, map[string]string{
		"gateways/edge.hcl":     gatewayFiles()["gateways/edge.hcl"],
		"gateways/web.hcl":      gatewayFiles()["gateways/web.hcl"],
		"gateways/service.json": gatewayFiles()["gateways/service.json"],
		"gateways/defaults.hcl": "kind = \"proxy-defaults\"\nname = \"global\"\naccess_logs { enabled = true }\nconfig {\n  usher { proxy_protocol { versions = [\"v2\"] } }\n}",
		"gateways/self.hcl":     "service {\n  kind = \"ingress-gateway\"\n  name = \"edge\"\n  proxy { config { usher { client_address { xff = \"append\" } } } }\n}",
		"usher.hcl": "usher {\n  proxy_protocol { mode = \"off\" }\n  listeners {\n    \"8080\" { proxy_protocol { mode = \"strict\" } }\n  }\n}\n" +
			"gateway \"edge\" {\n  usher { access_log { redact_query = \"yes\" } }\n}",
	})
	out, err := usher(t, "render", "--gateway", "edge", "--config-dir", "gateways", "--config", "usher.hcl", "--explain")
	if err != nil {
		t.Fatal(err)
	}
	comments, resources, _ := strings.Cut(out, "listeners:\n")
	var rows []string
	for line := range strings.Lines(comments) {
		rows = append(rows, strings.Join(strings.Fields(strings.TrimPrefix(line, "#")), " "))
	}
	want := []string{
		`listener 8080, http: config entry ingress-gateway/edge`,
		`addresses, TLS, services, hosts, headers, limits config entry ingress-gateway/edge`,
		`bind addresses registration of "edge"`,
		`AccessLogs enabled config entry proxy-defaults/global`,
		`proxy_protocol.mode "strict" usher.hcl:4:31: config file, usher.listeners.8080.proxy_protocol.mode`,
		`proxy_protocol.versions ["v2"] gateways/defaults.hcl:5:28: config entry proxy-defaults/global, Config.usher.proxy_protocol.versions`,
		`client_address.xff "append" gateways/self.hcl:4:45: registration of "edge", Proxy.Config.usher.client_address.xff`,
		`access_log.redact_query "yes" usher.hcl:8:24: config file, gateway "edge", usher.access_log.redact_query`,
		`every other setting of Usher has its default`,
	}
	if diff := cmp.Diff(want, rows); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if err := yaml.Unmarshal([]byte(out), new(any)); err != nil || resources == "" {
		t.Errorf("the output is no YAML: %v", err)
	}
}

func TestExplainSaysWhatIsNotKnown(t *testing.T) {
	for never, want := range map[bool]string{
		false: "#   every other setting of Usher has its default\n",
		true:  "#   the other settings of Usher are not known: correct the problems\n",
	} {
		v := &gatewayView{
			snapshot: &gateway.Snapshot{
				ID: gateway.ID{Name: "edge"}, Entry: &gateway.Entry{Listeners: []gateway.Listener{{Port: 80, Protocol: "tcp"}}},
				ProxyDefaults: settings.Layer{NeverValid: never},
			},
			instance: controlplane.InstancePreview{Instance: &gateway.Instance{ServiceID: "edge-1"}},
		}
		var out strings.Builder
		if err := v.explain(&out); err != nil || !strings.HasSuffix(out.String(), want) || strings.Contains(out.String(), "mode") == never {
			t.Errorf("a layer that was never valid: %v, error %v, want %q at the end and the default mode only if it is known:\n%s", never, err, want, out.String())
		}
	}
}

func TestExplainNamesWhatAutoStandsFor(t *testing.T) {
	v := &gatewayView{
		snapshot: &gateway.Snapshot{
			ID: gateway.ID{Name: "edge"}, Entry: &gateway.Entry{Listeners: []gateway.Listener{{Port: 80, Protocol: "tcp"}}},
			Balancers: map[gateway.KubernetesService]*gateway.Balancer{{Namespace: "consul", Name: "edge"}: {OtherPorts: gateway.PortState{Mode: settings.Strict}}},
		},
		instance: controlplane.InstancePreview{Instance: &gateway.Instance{ServiceID: "edge-1", Node: "n", Kubernetes: gateway.KubernetesService{Namespace: "consul", Name: "edge"}}},
	}
	rowsOf := func() string {
		var all []string
		for _, row := range v.rows(v.snapshot.Entry.Listeners[0]) {
			all = append(all, strings.Join(row, "|"))
		}
		return strings.Join(all, "\n")
	}
	for _, want := range []string{`proxy_protocol.mode|"auto"|default`, `  auto|"strict"|Service consul/edge in Kubernetes`, `bind addresses||registration of "edge-1" on node "n"`} {
		if !strings.Contains(rowsOf(), want) {
			t.Errorf("no %q in\n%s", want, rowsOf())
		}
	}
	v.snapshot.Balancers[v.instance.Kubernetes] = nil
	if want := "  auto|not known|"; !strings.Contains(rowsOf(), want) {
		t.Errorf("no %q in\n%s", want, rowsOf())
	}
	v.note = "mode auto is assumed to be off"
	if !strings.Contains(rowsOf(), v.note) {
		t.Errorf("no note in\n%s", rowsOf())
	}
	inConsul := settings.Origin{Layer: gateway.LayerFileAll, Path: "a.b"}
	if got := v.originOf(inConsul); got != "config file, usher.a.b" {
		t.Errorf("without a place: %q", got)
	}
	inConsul.At = problem.Position{File: "f", Line: 1, Column: 2}
	if got := v.originOf(inConsul); got != "f:1:2: config file, usher.a.b" {
		t.Errorf("with a place: %q", got)
	}
}
