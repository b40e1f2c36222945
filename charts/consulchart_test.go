//go:build e2e && kubernetes

package charts

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/testing/golden"
)

// TestConsulChartAgrees gives each values file to the real Consul charts in CONSUL_K8S, too. What Usher's chart finds in
// it is what the pods of the Consul chart's own gateways get: addresses, TLS, the CA, the auth method, the partition,
// and the names of their Services.
func TestConsulChartAgrees(t *testing.T) {
	charts, err := filepath.Glob(filepath.Join(os.Getenv("CONSUL_K8S"), "charts", "*", "consul"))
	if err != nil || len(charts) == 0 {
		t.Fatalf("CONSUL_K8S=%s has no charts/VERSION/consul (%v)", os.Getenv("CONSUL_K8S"), err)
	}
	compared := 0
	for _, name := range golden.Cases(t, "testdata") {
		values := absolute(t, "testdata/"+name+".in.yaml")
		usher := mustTemplate(t, "-f", values)
		served := servedServices(usher)
		for _, chart := range charts {
			end := helm(t, "template", "consul", chart, "--namespace", namespaceOfRelease, "--kube-version", "1.34.0", "-f", values)
			if end.Code != 0 {
				t.Errorf("%s: the Consul chart %s: %s", name, chart, end.Stderr)
				continue
			}
			gateways := objects(t, end.Stdout)
			wantChangedPods(t, name+": "+chart, usher, gateways)
			for _, o := range gateways {
				if o.kind() != "Deployment" || o.at("metadata", "labels", "component") != "ingress-gateway" {
					continue
				}
				if service := o.metadata()["name"].(string); !slices.Contains(served, service) {
					if !strings.HasSuffix(service, "-internal") { // several-gateways leaves it out
						t.Errorf("%s: %s: Usher may not read the Service %s", name, chart, service)
					}
					continue
				}
				if name == "token" { // the values of Usher's chart say where the CA is, and refuse tokens of Envoys
					continue
				}
				compared++
				deployment := find(t, usher, "Deployment", deploymentName(usher))
				own := connectionOfUsher(deployment)
				own.HTTP, _, _ = strings.Cut(own.HTTP, ",") // a gateway has the first address, and Usher all of them
				own.GRPC, _, _ = strings.Cut(own.GRPC, ",")
				if diff := cmp.Diff(connectionOfGateway(o), own); diff != "" {
					t.Errorf("%s: %s: how Consul is reached differs (-gateway +Usher): %s", name, chart, diff)
				}
			}
		}
	}
	if compared < 20 {
		t.Errorf("%d gateways were compared; the values files have more", compared)
	}
}

// wantChangedPods checks that the policy of Usher's chart is for pods of the Consul chart that have what it changes.
func wantChangedPods(t *testing.T, where string, usher, consul []object) {
	t.Helper()
	for _, policy := range usher {
		if policy.kind() != "MutatingAdmissionPolicy" {
			continue
		}
		selector := policy.at("spec", "matchConstraints", "objectSelector").(map[string]any)
		for _, name := range selector["matchExpressions"].([]any)[0].(map[string]any)["values"].([]any) {
			pod := podOf(find(t, consul, "Deployment", name.(string)))
			if labels := object(pod.at("metadata", "labels").(map[string]any)); labels["component"] != "ingress-gateway" || labels["ingress-gateway-name"] != name {
				t.Errorf("%s: the policy is not for the pods of %s, which have the labels %v", where, name, labels)
			}
			container := gatewayContainer(t, pod)
			if container["args"] == nil || container["volumeMounts"] == nil || pod.at("spec", "volumes") == nil {
				t.Errorf("%s: the pods of %s are refused: %v", where, name, container)
			}
		}
	}
}

// connection is how a pod reaches Consul.
type connection struct {
	HTTP, GRPC, CA, ServerName, Partition, AuthMethod string
}

// connectionOfGateway is what the Consul chart gives to the pods of a gateway.
func connectionOfGateway(deployment object) connection {
	env := environment(deployment.at("spec", "template", "spec", "initContainers").([]any)[0])
	scheme := "http"
	if env["CONSUL_USE_TLS"] == "true" {
		scheme = "https"
	}
	host := env["CONSUL_ADDRESSES"]
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return connection{
		HTTP: scheme + "://" + host + ":" + env["CONSUL_HTTP_PORT"], GRPC: scheme + "://" + host + ":" + env["CONSUL_GRPC_PORT"],
		CA:         mountedSecret(deployment, "consul-ca-cert"),
		ServerName: env["CONSUL_TLS_SERVER_NAME"], Partition: env["CONSUL_PARTITION"], AuthMethod: env["CONSUL_LOGIN_AUTH_METHOD"],
	}
}

// connectionOfUsher is what Usher's chart gives to its pods.
func connectionOfUsher(deployment object) connection {
	env := environment(deployment.at("spec", "template", "spec", "containers").([]any)[0])
	flags := map[string]string{}
	for _, arg := range containerArgs(deployment) {
		flag, value, _ := strings.Cut(arg, "=")
		flags[flag] = value
	}
	return connection{
		HTTP: env["CONSUL_HTTP_ADDR"], GRPC: flags["--consul-grpc-addr"], CA: mountedSecret(deployment, "consul-ca"),
		ServerName: env["CONSUL_TLS_SERVER_NAME"], Partition: env["CONSUL_PARTITION"], AuthMethod: flags["--envoy-login-auth-method"],
	}
}

// environment is the environment of a container.
func environment(container any) map[string]string {
	env := map[string]string{}
	for _, variable := range container.(map[string]any)["env"].([]any) {
		variable := variable.(map[string]any)
		value, _ := variable["value"].(string)
		env[variable["name"].(string)] = value
	}
	return env
}

// mountedSecret is the Secret and the key in it of a volume; "" if there is no such volume.
func mountedSecret(deployment object, volume string) string {
	volumes, _ := deployment.at("spec", "template", "spec", "volumes").([]any)
	for _, v := range volumes {
		v := object(v.(map[string]any))
		if v["name"] == volume {
			item := v.at("secret", "items").([]any)[0].(map[string]any)
			return v.at("secret", "secretName").(string) + "/" + item["key"].(string)
		}
	}
	return ""
}

// servedServices are the Services that Usher may read.
func servedServices(all []object) []string {
	var names []string
	for _, o := range all {
		if o.kind() != "Role" {
			continue
		}
		for _, rule := range o["rules"].([]any) {
			rule := rule.(map[string]any)
			if rule["resources"].([]any)[0] == "services" {
				for _, name := range rule["resourceNames"].([]any) {
					names = append(names, name.(string))
				}
			}
		}
	}
	return names
}
