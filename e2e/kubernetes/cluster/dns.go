//go:build kubernetes

package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// dns stands for a cluster DNS: a hosts file that all containers see. Go, gRPC
// and Envoy read it at each look-up.
type dns struct {
	directory string // it is shown as a whole, so that the file can be replaced
	content   string
}

// reconcileNames writes the names of all Services. There is no kube-proxy, so
// that a name leads to the Service's pods and not to its cluster address.
func (c *Cluster) reconcileNames(ctx context.Context) error {
	endpoints, err := c.API.CoreV1().Endpoints("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	var hosts strings.Builder
	fmt.Fprintf(&hosts, "127.0.0.1 localhost\n%s kubernetes.default.svc kubernetes.default\n", apiServiceIP)
	for _, e := range endpoints.Items {
		if e.Name == "kubernetes" {
			continue
		}
		for _, subset := range e.Subsets {
			for _, address := range subset.Addresses {
				hosts.WriteString(hostsLine(e, address))
			}
		}
	}
	return c.dns.write(hosts.String())
}

// hostsLine has the names of a Service, and the name that the pod of a
// StatefulSet has below it.
func hostsLine(e corev1.Endpoints, address corev1.EndpointAddress) string { //nolint:staticcheck // as Consul's controllers, which read Endpoints
	service := e.Name + "." + e.Namespace
	names := []string{service + ".svc", service, service + ".svc.cluster.local"}
	if address.TargetRef != nil {
		names = append(names, address.TargetRef.Name+"."+service+".svc")
	}
	return address.IP + " " + strings.Join(names, " ") + "\n"
}

func (d *dns) write(content string) error {
	if content == d.content {
		return nil
	}
	file := filepath.Join(d.directory, "hosts")
	if err := os.WriteFile(file+".new", []byte(content), 0o644); err != nil {
		return err
	}
	if err := os.Rename(file+".new", file); err != nil {
		return err
	}
	d.content = content
	return nil
}
