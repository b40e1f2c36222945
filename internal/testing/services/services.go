// Package services reads Services as users write them for the clouds' load balancers, with what each cloud does with
// its Service.
package services

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Case is a Service, what its cloud does with it, and what Usher says. The Service is Balanced with these annotations and
// these fields of its spec.
type Case struct {
	Name        string // with the name of its file before it
	Annotations map[string]string
	Spec        map[string]any
	Hostname    string // of the load balancer in the status
	State       string // of PROXY headers, for both of its ports: on, off or unknown
	HTTPS       string // for port 443, where it differs
	Version     string // of the headers where they are on; "": it is not known
	Problem     string // part of the only one; empty if there is none
}

// Read returns the cases of a directory, which has a file for each cloud.
func Read(t testing.TB, dir string) []Case {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(dir, "*.yaml"))
	var all []Case
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var cases []Case
		d := yaml.NewDecoder(strings.NewReader(string(text)))
		d.KnownFields(true)
		if err := d.Decode(&cases); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, c := range cases {
			c.Name = strings.TrimSuffix(filepath.Base(file), ".yaml") + ", " + c.Name
			all = append(all, c)
		}
	}
	return all
}

// Service returns the case's Service.
func (c Case) Service(t testing.TB) *corev1.Service {
	t.Helper()
	s := Balanced(maps.Clone(c.Annotations))
	if _, found := c.Spec["ports"]; found {
		s.Spec.Ports = nil
	}
	text, err := json.Marshal(c.Spec)
	if err == nil {
		err = json.Unmarshal(text, &s.Spec)
	}
	if err != nil {
		t.Fatalf("%s: %v", c.Name, err)
	}
	if c.Hostname != "" {
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{Hostname: c.Hostname}}
	}
	return s
}

// Balanced returns a Service of type LoadBalancer with these annotations and ports 80 and 443, which lead to 8080 and
// 8443.
func Balanced(annotations map[string]string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "consul", Name: "edge", Annotations: annotations},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{
			{Name: "http", Port: 80, NodePort: 30080, TargetPort: intstr.FromInt32(8080)},
			{Name: "https", Port: 443, NodePort: 30443, TargetPort: intstr.FromInt32(8443), Protocol: corev1.ProtocolTCP},
		}},
	}
}
