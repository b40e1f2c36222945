//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// listedFormat is a config with a log format that has an operator inside another one.
const listedFormat = `
gateway "ingress-gateway" {
  usher {
    access_log {
      sinks  = [{ type = "stdout" }]
      format = { json = { path = "%%REQ(:path)%%", who = "%%COALESCE({\"operators\":[{\"command\":\"REQ\",\"param\":\"x-none\"},\"%s\"]})%%" } }
    }
  }
}
`

// TestAMisspeltOperatorInsideAnotherIsNamed has a log format with an operator that Envoy does not know inside
// %COALESCE(…)%. A problem names it, and Envoy serves the listener without this log. With the right name, requests are
// logged.
func TestAMisspeltOperatorInsideAnotherIsNamed(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
	usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul, Config: "usher {}"})
	gateway := lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: lab.EnvoyNew, GRPCAddr: usher.GRPCAddr})
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)
	write := func(operator string) func() {
		return func() { usher.WriteConfig(t, fmt.Sprintf(listedFormat, operator)) }
	}
	misspelt := usher.WantProblem(t, fmt.Sprintf("msg=problem gateway=ingress-gateway where=%q what=%q",
		usher.ConfigFile+":6: usher.access_log.format",
		`%COALESCE({"operators":[{"command":"REQ","param":"x-none"},"REQUESTED_SERVER_NAM"]})%: operators[1]: %REQUESTED_SERVER_NAM%: `+
			"there is no operator REQUESTED_SERVER_NAM (did you mean %REQUESTED_SERVER_NAME%?); "+
			"see https://www.envoyproxy.io/docs/envoy/latest/configuration/advanced/substitution_formatter, or remove it; nothing is logged there until this is corrected"),
		write("REQUESTED_SERVER_NAM"))
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)
	misspelt.WantFixed(t, write("PROTOCOL"))
	testprocess.Eventually(t, "requests are logged with the protocol", testprocess.ChangeDeadline, func() error {
		l.Request(lab.NewPath()).MustDo(t).WantHello(t)
		for _, entry := range gateway.Log.Entries(t) {
			if entry.Text("who") == "HTTP/1.1" {
				return nil
			}
		}
		return errors.New("there is no such line")
	})
	if rejected := regexp.MustCompile(`(?m)^usher_xds_rejected.* [1-9]`).FindString(usher.Metrics(t)); rejected != "" {
		t.Errorf("an Envoy has rejected something: %s", rejected)
	}
}
