// Command settings-doc writes the page of all settings (docs/settings.md) to the
// file that it is given, from the table that decodes them (settings.Groups).
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/usherproxy/usher/internal/settings"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: settings-doc FILE")
		os.Exit(2)
	}
	text, err := page()
	if err == nil {
		err = os.WriteFile(os.Args[1], []byte(text), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// example is the first example of the page.
const example = `usher {
  proxy_protocol {
    mode          = "strict"
    versions      = ["v2"]
    trusted_cidrs = ["10.0.16.0/20", "2001:db8:16::/48"]
    tlvs          = [{ type = "aws_vpce_id", name = "vpce", header = "x-vpc-endpoint" }]
  }
  client_address {
    xff = "overwrite"
  }
  access_log {
    sinks  = [{ type = "stdout" }, { type = "otlp", address = "collector.internal:4317" }]
    format = "ecs"
  }
  listeners {
    "9000" {
      proxy_protocol { upstream = "v2" }
    }
  }
}
`

const head = `# Settings

<!-- Written by "make generate" from internal/settings/schema.go and tools/settings-doc. -->

All settings are in one object, ` + "`usher`" + `.
This page has every setting, first where it can be and then what it does.
[client-address.md](client-address.md#what-to-set-for-your-balancer) says what to set for your load balancer.

The most important setting is ` + "`mode`" + `:

| ` + "`mode`" + ` | a connection with a PROXY header, v1 or v2 | a connection without one |
|---|---|---|
| ` + "`auto`" + ` (the default) | In Kubernetes, Usher follows the gateway's Service ([load-balancers.md](load-balancers.md)). Elsewhere ` + "`auto` is `off`" + `. | The same. |
| ` + "`off`" + ` | The answer is 400, exactly as from Consul's listener. | Envoy serves it. |
| ` + "`permissive`" + ` | Envoy serves it. | Envoy serves it. |
| ` + "`strict`" + ` | Envoy serves it. | Envoy closes it. |

## Four places

You can put the object in four places.
The more specific place wins, one setting at a time.
From general to specific:

| place | for |
|---|---|
| ` + "a block `usher { … }` of the file given with `--config`" + ` | every gateway that this Usher serves |
| ` + "`Config` of the config entry `proxy-defaults`" + `; in Kubernetes ` + "`spec.config` of the custom resource `ProxyDefaults`" + ` | every gateway of the datacenter |
| ` + "`Proxy.Config` of the gateway's registration" + ` | one instance (` + "`consul connect envoy -register`" + ` drops it: it rewrites the registration) |
| ` + "a block `gateway \"<name>\" { usher { … } }` of the file given with `--config`" + ` | every instance of one gateway |

- A setting under ` + "`listeners.\"<port>\"`" + ` in any place wins over the same setting outside ` + "`listeners`" + ` in every place.
- To undo a more general setting, write its word: ` + "`off`, `none`, `any` or `default`" + `.
  Usher refuses ` + "`0`, `false`, `\"\"` and `[]`" + `, because Consul loses them when it merges proxy-defaults into a registration.
- Consul merges objects key by key, even two lists with one object each.
  If proxy-defaults and a registration each have one TLV, the one of the registration gets the ` + "`header`" + ` of the other, unless it has ` + "`header = \"none\"`" + `.
- For a value that is not allowed or an unknown key, Usher reports a [problem](problems.md) of one line, and the place keeps its last valid settings.
  A place that was never valid holds back every listener of its gateways until you correct it.
- Usher never leaves out a security setting for which an Envoy is too old: it holds the listener back, and a problem says which release the setting needs.

Usher reads a changed place by itself, and nothing restarts.
` + "`usher render --explain`" + ` says for each setting of a listener which place it comes from.

## HCL and YAML

The pages show settings in two forms.
The first one is for the config file (` + "`--config`" + `), and the second one for the custom resource ` + "`ProxyDefaults`" + `.
Both say the same:

%s
There is one ` + "`ProxyDefaults`" + ` for the datacenter, with the name ` + "`global`" + `.
So the YAML of the pages is a patch for it, which leaves your other settings as they are.
Save it as ` + "`proxydefaults-patch.yaml`" + `, find the namespace of the resource, and patch it there:

` + "```sh" + `
kubectl get proxydefaults --all-namespaces
kubectl --namespace <its namespace> patch proxydefaults global --type merge --patch-file proxydefaults-patch.yaml
` + "```" + `

If there is none yet, put these lines before it and use ` + "`kubectl apply`" + `:

` + "```yaml" + `
apiVersion: consul.hashicorp.com/v1alpha1
kind: ProxyDefaults
metadata:
  name: global
` + "```" + `

Keep the quotes around words such as ` + "`\"off\"`, `\"yes\"` and `\"no\"`" + `.
Without them, they are booleans in YAML, and Usher refuses booleans.

For one gateway, use the chart of Usher.
Its value ` + "`settings`" + ` is the config file, so it has both blocks, for all gateways and for one:

` + "```yaml" + `
settings:
  usher:
    proxy_protocol:
      trusted_cidrs: ["10.0.16.0/20"]
  gateway:
    ingress-gateway:
      usher:
        proxy_protocol:
          mode: "strict"
` + "```" + `

With Consul's own commands, the config entry has the same object, in HCL or JSON:

` + "```hcl" + `
Kind = "proxy-defaults"
Name = "global"
Config {
  usher {
    proxy_protocol {
      mode = "strict"
    }
  }
}
` + "```" + `
`

// page returns the whole page.
func page() (string, error) {
	first, err := pair(example)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, head, first)
	for _, group := range settings.Groups {
		if err := writeGroup(&b, group); err != nil {
			return "", err
		}
	}
	b.WriteString("\n## What is refused\n\nA listener with one of these combinations keeps its last valid configuration, and a problem says why.\n\n")
	for _, c := range settings.Conflicts {
		fmt.Fprintf(&b, "- %s.\n", c.Doc)
	}
	b.WriteString("\n## TLVs with names\n\n| `type` | number | default `name` | what it is |\n|---|---|---|---|\n")
	for _, k := range settings.KnownTLVs {
		fmt.Fprintf(&b, "| `%s` | `0x%02X` | `%s` | %s |\n", k.Name, k.Type, k.LogName, k.Meaning)
	}
	b.WriteString("\nOf any other type, only values in printable ASCII are logged and sent to services.\n" +
		"In your own log formats, a TLV is `%FILTER_STATE(usher.tlv.<name>:PLAIN)%`.\n")
	b.WriteString("\n## Fields of access logs with names\n\n| name | what it is |\n|---|---|\n")
	for _, f := range settings.LogFields {
		fmt.Fprintf(&b, "| `%s` | %s |\n", f.Name, f.Meaning)
	}
	b.WriteString("\nEach TLV is a field, too, under its name.\n")
	return b.String(), nil
}

// writeGroup writes the settings of a group, and an example of each in both forms.
func writeGroup(b *strings.Builder, group settings.Group) error {
	fmt.Fprintf(b, "\n## %s\n\n%s\n\n| key | accepts | default | meaning |\n|---|---|---|---|\n", group.Key, group.Meaning)
	for _, s := range group.Settings {
		fmt.Fprintf(b, "| `%s` | %s | `%s` | %s |\n", s.Key, s.Accepts, s.Default, s.Meaning)
	}
	fmt.Fprintf(b, "\n| in HCL, inside of `%[1]s { … }` | in YAML, below `%[1]s:` |\n|---|---|\n", group.Key)
	for _, s := range group.Settings {
		line := s.Key + " = " + s.Example
		yaml, err := flowYAML(line)
		if err != nil {
			return fmt.Errorf("the example %s: %w", line, err)
		}
		fmt.Fprintf(b, "| `%s` | `%s` |\n", line, yaml)
	}
	return nil
}
