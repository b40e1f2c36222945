package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/doctor"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// closedPort is an address where nothing listens.
const closedPort = "127.0.0.1:1"

// TestDoctorReadsWhatUsherWouldServe has files with a mistake, and no Usher and no Envoy that run.
func TestDoctorReadsWhatUsherWouldServe(t *testing.T) {
	files := gatewayFiles()
	delete(files, "gateways/service.json")
	newFiles(t, files)
	args := []string{"doctor", "--gateway", "edge", "--config-dir", "gateways", "--envoy-admin", closedPort, "-o", "json", "--timeout", "1s"}
	out, err := usher(t, args...)
	var r doctor.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if status, silent := statusOf(doctorCommand(), err); status != doctor.StatusWrong || !silent {
		t.Errorf("exit status %d (%v), want %d", status, err, doctor.StatusWrong)
	}
	if len(r.Findings) != 1 || !strings.Contains(r.Findings[0].What, `service "web" has no definition`) {
		t.Errorf("got the findings %+v", r.Findings)
	}
	failed := map[string]bool{}
	for _, u := range r.Unseen {
		failed[u.Flag] = u.Failed
	}
	if !failed["--envoy-admin URL"] || failed["--usher-admin-addr HOST:PORT"] {
		t.Errorf("got %+v, want that the Envoy that was named does not answer", r.Unseen)
	}
}

// TestDoctorPrintsNoSecret has a Consul that refuses, and a password and a token.
func TestDoctorPrintsNoSecret(t *testing.T) {
	const secret = "s3cr3t-0f-the-token"
	consul := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "no access with "+r.Header.Get("X-Consul-Token")+r.Header.Get("Authorization"), http.StatusForbidden)
	}))
	defer consul.Close()
	t.Setenv("CONSUL_HTTP_ADDR", consul.URL)
	t.Setenv("CONSUL_HTTP_TOKEN", secret)
	for _, output := range []string{"text", "json"} {
		out, err := usher(t, "doctor", "--gateway", "edge", "--envoy-admin", "http://u:"+secret+"@"+closedPort, "--usher-admin-addr", closedPort, "-o", output)
		if strings.Contains(out, secret) || err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("it prints the secret: %v: %s", err, out)
		}
		if status, _ := statusOf(&cobra.Command{}, err); status != doctor.StatusUnseen || !strings.Contains(out, "Consul at "+consul.URL) {
			t.Errorf("exit status %d, want %d, and that Consul refuses: %s", status, doctor.StatusUnseen, out)
		}
	}
}

// TestDoctorReadsTheService has a Service that switches headers on for one of two ports.
func TestDoctorReadsTheService(t *testing.T) {
	service := gateway.KubernetesService{Namespace: "consul", Name: "edge"}
	snapshot := &gateway.Snapshot{
		Entry: &gateway.Entry{Listeners: []gateway.Listener{{Port: 8080}, {Port: 9000}}},
		Balancers: map[gateway.KubernetesService]*gateway.Balancer{service: {
			Ports: map[int]gateway.PortState{8080: {Mode: settings.Strict}}, OtherPorts: gateway.PortState{Mode: settings.Off},
		}},
	}
	v := &gatewayView{
		snapshot: snapshot, instance: controlplane.InstancePreview{Instance: &gateway.Instance{Kubernetes: service}}, problems: []problem.Problem{{Where: "here"}},
	}
	want := &doctor.Plan{Problems: v.problems, Service: service, ServiceModes: map[int]settings.Mode{8080: settings.Strict, 9000: settings.Off}}
	if diff := cmp.Diff(want, planOf(v)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	snapshot.Balancers = nil
	if got := planOf(v); got.Service != (gateway.KubernetesService{}) {
		t.Errorf("without a cluster, it is behind %v", got.Service)
	}
}
