package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/resourcediff"
	"github.com/usherproxy/usher/internal/settings"
)

// explain writes, for each listener, where what is special about it comes from. The lines are comments of YAML.
func (v *gatewayView) explain(w io.Writer) error {
	var text strings.Builder
	for _, l := range v.snapshot.Entry.Listeners {
		fmt.Fprintf(&text, "listener %d, %s: %s\n", l.Port, gateway.NormalProtocol(l.Protocol), v.entry())
		table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
		for _, row := range v.rows(l) {
			fmt.Fprintln(table, "  "+strings.Join(row, "\t"))
		}
		if err := table.Flush(); err != nil {
			return err
		}
		rest := "every other setting of Usher has its default"
		if !v.snapshot.KnowsSettings(v.instance.Instance) {
			rest = "the other settings of Usher are not known: correct the problems"
		}
		fmt.Fprintf(&text, "  %s\n\n", rest)
	}
	for line := range strings.Lines(strings.TrimSuffix(text.String(), "\n")) {
		if _, err := fmt.Fprintln(w, strings.TrimRight("# "+line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// entry names the config entry.
func (v *gatewayView) entry() string {
	return fmt.Sprintf("config entry ingress-gateway/%s", v.snapshot.ID)
}

// rows returns the rows of a listener's table: what, its value, and where it comes from.
func (v *gatewayView) rows(l gateway.Listener) [][]string {
	in := v.instance.Instance
	rows := [][]string{
		{"addresses, TLS, services, hosts, headers, limits", "", v.entry()},
		{"bind addresses", "", v.registration()},
	}
	if in.AccessLogs.Enabled {
		rows = append(rows, []string{"AccessLogs", "enabled", "config entry proxy-defaults/global"})
	}
	for _, o := range v.snapshot.ExplainListener(in, l.Port) {
		isMode := o.Setting == "proxy_protocol.mode"
		if o.Layer >= 0 || isMode && v.snapshot.KnowsSettings(in) {
			rows = append(rows, []string{o.Setting, withoutSecret(o), v.originOf(o)})
		}
		if isMode && o.Value == strconv.Quote(string(settings.Auto)) {
			rows = append(rows, []string{"  auto", v.autoMode(l.Port), v.autoOrigin()})
		}
	}
	return rows
}

// withoutSecret returns the value of a setting as it was written, without what is secret.
func withoutSecret(o settings.Origin) string {
	var value resourcediff.Tree
	if !o.Hidden || json.Unmarshal([]byte(o.Value), &value) != nil {
		return o.Value
	}
	text, _ := json.Marshal(resourcediff.RedactTree(value)) // it was JSON
	return string(text)
}

func (v *gatewayView) registration() string {
	if v.instance.Node == "" {
		return fmt.Sprintf("registration of %q", v.instance.ServiceID)
	}
	return fmt.Sprintf("registration of %q on node %q", v.instance.ServiceID, v.instance.Node)
}

// originOf names the layer that sets a setting, with its place if that is in a file.
func (v *gatewayView) originOf(o settings.Origin) string {
	var layer string
	switch o.Layer {
	case gateway.LayerFileAll:
		layer = "config file, usher." + o.Path
	case gateway.LayerProxyDefaults:
		layer = "config entry proxy-defaults/global, Config.usher." + o.Path
	case gateway.LayerRegistration:
		layer = v.registration() + ", Proxy.Config.usher." + o.Path
	case gateway.LayerFileGateway:
		layer = fmt.Sprintf("config file, gateway %q, usher.%s", v.snapshot.ID.Name, o.Path)
	default:
		return "default"
	}
	if o.At.Line == 0 {
		return layer
	}
	return fmt.Sprintf("%s:%d: %s", o.At, o.At.Column, layer)
}

// autoMode returns the mode that auto stands for on a port.
func (v *gatewayView) autoMode(port int) string {
	l, known := v.snapshot.ListenerSettings(v.instance.Instance, port)
	if !known {
		return "not known"
	}
	return strconv.Quote(string(l.ProxyProtocol.Mode))
}

// autoOrigin says where the mode that auto stands for comes from.
func (v *gatewayView) autoOrigin() string {
	if v.note != "" {
		return v.note
	}
	service := v.instance.Kubernetes
	return fmt.Sprintf("Service %s/%s in Kubernetes", service.Namespace, service.Name)
}
