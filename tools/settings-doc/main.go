// Command settings-doc writes the page of all settings (docs/settings.md) to the
// file that it is given, from the table that decodes them (gateway.Schema).
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

Everything stands in one object, ` + "`usher`" + `, which can stand in four places. They are laid over each other, setting by setting, from general to special:

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

- What stands under ` + "`listeners.\"<port>\"`" + ` in any of the places wins over what stands beside ` + "`listeners`" + ` in all of them.
- A word such as ` + "`off`, `none`, `any` or `default`" + ` takes back what a more general place says. ` + "`0`, `false`, `\"\"` and `[]`" + ` are refused: Consul's merge of proxy-defaults
  into a registration would lose them.
- Consul merges objects key by key, also two lists of one object each: a TLV of a registration that is the only one keeps a ` + "`header`" + ` of the only one in proxy-defaults,
  unless it says ` + "`header = \"none\"`" + `.
- A value that is not allowed or an unknown key is reported in one line, and its place counts with what it last said. A place that was bad from the start
  holds every listener of its gateways back until it is mended.
- What an Envoy is too old for is never left out where it protects: the listener is held back, and a problem says which release it needs.
`

// page gives the whole page.
func page() string {
	var b strings.Builder
	b.WriteString(head)
	groups, meanings := settings.Groups()
	for _, group := range groups {
		fmt.Fprintf(&b, "\n## %s\n\n%s.\n\n| key | takes | initially | meaning |\n|---|---|---|---|\n", group, meanings[group])
		for _, s := range settings.Schema() {
			if key, ok := strings.CutPrefix(s.Path, group+"."); ok {
				fmt.Fprintf(&b, "| `%s` | %s | `%s` | %s |\n", key, s.Accepts, s.Default, s.Meaning)
			}
		}
	}
	b.WriteString("\n## What is refused\n\nA listener with one of these keeps its last good configuration, and a problem says why.\n\n")
	for _, c := range settings.Conflicts {
		fmt.Fprintf(&b, "- %s.\n", c.Doc)
	}
	b.WriteString("\n## TLVs with names\n\n| `type` | number | `name`, unless you give one | what it is |\n|---|---|---|---|\n")
	for _, k := range settings.KnownTLVs {
		fmt.Fprintf(&b, "| `%s` | `0x%02X` | `%s` | %s |\n", k.Name, k.Type, k.LogName, k.Meaning)
	}
	b.WriteString("\nOf any other type, a value that is printable ASCII is told, and nothing of one that is not.\n" +
		"Log formats of your own have a TLV as `%FILTER_STATE(usher.tlv.<name>:PLAIN)%`.\n")
	b.WriteString("\n## Fields of access logs with names\n\n| name | what it is |\n|---|---|\n")
	for _, f := range settings.LogFields {
		fmt.Fprintf(&b, "| `%s` | %s |\n", f.Name, f.Meaning)
	}
	b.WriteString("\nEach TLV is there, too, under its name.\n")
	return b.String()
}
