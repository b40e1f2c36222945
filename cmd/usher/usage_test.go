package main

import (
	"strings"
	"testing"
)

// TestHabitsOfOtherCommandsAreExplained has flags with one dash, as Consul has them, and a gateway as an argument.
func TestHabitsOfOtherCommandsAreExplained(t *testing.T) {
	for args, want := range map[string]string{
		"-version":          "unknown flag: -version; flags have two dashes: --version",
		"serve -config x":   "unknown flag: -config; flags have two dashes: --config",
		"render -gateway=x": "unknown flag: -gateway; flags have two dashes: --gateway",
		"serve -help":       "unknown flag: -help; flags have two dashes: --help",

		"render --gateway x -output json":      "unknown flag: -output; flags have two dashes: --output",
		"helm-values -namespace x":             "unknown flag: -namespace; flags have two dashes: --namespace",
		"helm-values -values x":                "unknown flag: -values; flags have two dashes: --values",
		"helm-values --valus x":                `unknown flag: --valus (did you mean "values"?); see usher helm-values --help`,
		"validate -output json x":              "unknown flag: -output; flags have two dashes: --output",
		"support-bundle -output=DIR/x.tgz":     "unknown flag: -output; flags have two dashes: --output",
		"serve --webhook-arg -log-level=debug": "--webhook-arg, --webhook-ca-secret and --webhook-termination-grace-period are for the webhook; set --webhook-addr, or remove them",
		"validate -o json -- -output":          "stat -output: no such file or directory",
		"serve --confg=x":                      `unknown flag: --confg (did you mean "config"?); see usher serve --help`,
		"serve -x":                             "unknown shorthand flag: 'x' in -x; see usher serve --help",
		"bootstrap ingress-gateway":            `usher bootstrap takes no argument "ingress-gateway"; name the gateway with --gateway ingress-gateway`,
		"status extra":                         `usher status takes no argument "extra"; see usher status --help`,
		"support-bundle extra":                 `usher support-bundle takes no argument "extra"; see usher support-bundle --help`,
		"cutover extra":                        `usher cutover takes no argument "extra"; see usher cutover --help`,
		"version x":                            `usher version takes no argument "x"; see usher version --help`,
	} {
		_, err := usher(t, strings.Fields(args)...)
		if err == nil || err.Error() != want {
			t.Errorf("usher %s: %v, want %q", args, err, want)
		}
	}
}
