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
	if err := os.WriteFile(os.Args[1], []byte(page()), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const head = `# Settings

<!-- Written by "make generate" from internal/settings/schema.go. -->

All settings are in one object, ` + "`usher`" + `, which you can put in four places.
The more specific place wins, one setting at a time.
From general to specific:

| place | for |
|---|---|
| ` + "a block `usher { … }` of the file given with `--config`" + ` | every gateway that this Usher serves |
| ` + "`Config` of the config entry `proxy-defaults`" + ` | every gateway of the datacenter |
| ` + "`Proxy.Config` of the gateway's registration" + ` | one instance (` + "`consul connect envoy -register`" + ` drops it: it rewrites the registration) |
| ` + "a block `gateway \"<name>\" { usher { … } }` of the file given with `--config`" + ` | every instance of one gateway |

` + "```hcl" + `
usher {
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
` + "```" + `

- A setting under ` + "`listeners.\"<port>\"`" + ` in any place wins over the same setting outside ` + "`listeners`" + ` in every place.
- To undo a more general setting, write its word: ` + "`off`, `none`, `any` or `default`" + `.
  Usher refuses ` + "`0`, `false`, `\"\"` and `[]`" + `, because Consul loses them when it merges proxy-defaults into a registration.
- Consul merges objects key by key, even two lists with one object each.
  If proxy-defaults and a registration each have one TLV, the one of the registration gets the ` + "`header`" + ` of the other, unless it has ` + "`header = \"none\"`" + `.
- For a value that is not allowed or an unknown key, Usher reports a problem of one line, and the place keeps its last valid settings.
  A place that was never valid holds back every listener of its gateways until you correct it.
- Usher never leaves out a security setting for which an Envoy is too old: it holds the listener back, and a problem says which release the setting needs.
`

// page returns the whole page.
func page() string {
	var b strings.Builder
	b.WriteString(head)
	for _, group := range settings.Groups {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| key | accepts | default | meaning |\n|---|---|---|---|\n", group.Key, group.Meaning)
		for _, s := range group.Settings {
			fmt.Fprintf(&b, "| `%s` | %s | `%s` | %s |\n", s.Key, s.Accepts, s.Default, s.Meaning)
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
	return b.String()
}
