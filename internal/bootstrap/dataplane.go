package bootstrap

import (
	"bytes"
	"cmp"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path"
	"strconv"
	"strings"
	"text/template"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	grpc_credentialv3 "github.com/envoyproxy/go-control-plane/envoy/config/grpc_credential/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	"google.golang.org/protobuf/encoding/protojson"
)

// DataplaneOptions say where Usher is, for the Envoys that consul-dataplane starts.
type DataplaneOptions struct {
	// XDSAddr is host:port (plain text) or https://host:port of Usher, as the gateway's pods reach it. "" leaves Envoy with
	// consul-dataplane's own xDS server, which passes the stream on to the server that consul-dataplane is connected to.
	XDSAddr    string
	CACert     string // PEM that Usher's certificate is verified with; https only; this or CAFile
	CAFile     string // or the path of such a file in the gateway's pod
	ServerName string // that Usher's certificate must be for; "" means the host in XDSAddr
	TokenFile  string // of the service account token that Envoy sends as bearer token; "" sends none
	// DeferStats has Envoy create the statistics of requests to a service with the first request, so that it starts
	// faster. It needs Envoy 1.27, which is in consul-dataplane 1.3 and later.
	DeferStats bool
	// DrainTime is how long Envoy drains before it ends: it accepts connections, and closes each one with its next
	// answer. 0 means that it ends at once, as with consul-dataplane's own template. The pod's
	// terminationGracePeriodSeconds has to be longer.
	DrainTime time.Duration
}

// DefaultDrainTime is for pods with ten seconds to end, as the Consul chart has them.
const DefaultDrainTime = 8 * time.Second

// Drains reports whether Envoy drains before it ends.
func (o DataplaneOptions) Drains() bool { return o.DrainTime > 0 }

// DrainDelay returns DrainTime as Envoy reads it.
func (o DataplaneOptions) DrainDelay() string {
	return strconv.FormatFloat(o.DrainTime.Seconds(), 'f', -1, 64) + "s"
}

//go:embed dataplane.tmpl
var dataplaneSource string

var dataplaneSourceTemplate = template.Must(template.New("dataplane.tmpl").Delims("[[", "]]").
	Funcs(template.FuncMap{"json": toInertJSON}).Parse(dataplaneSource))

// toInertJSON returns text as JSON in which consul-dataplane finds no action to fill in.
func toInertJSON(text string) (string, error) {
	out, err := toJSON(text)
	return strings.ReplaceAll(out, "{", `\u007b`), err
}

// DataplaneTemplate returns the template of the bootstrap that consul-dataplane gives its Envoy, for the key
// envoy_bootstrap_json_tpl of a gateway's Proxy.Config. Envoy gets its listeners and clusters from Usher, and
// everything else is as consul-dataplane's own template has it: admin interface, node, ready listener, Prometheus
// listener, sinks, tracing.
//
// Without DeferStats, the template is right for Envoy 1.25 and later, and so for each release of consul-dataplane that
// gets it: an Envoy that finds an unknown field in its bootstrap ends. The text is public, because the catalog has it, and holds no secret.
//
// With a DrainTime, a listener is in the place of Envoy's admin interface, which has an abstract Unix socket instead.
// It answers as the admin interface does, with two exceptions: consul-dataplane's requests to drain and to quit make
// Envoy drain, and Envoy quits after the DrainTime. The listener opens with the gateway's first configuration.
//
// The same options give the same text. The error says which option is wrong.
func DataplaneTemplate(o DataplaneOptions) (string, error) {
	p, err := dataplaneParametersOf(o)
	if err != nil {
		return "", err
	}
	var text bytes.Buffer
	if err := dataplaneSourceTemplate.Execute(&text, p); err != nil {
		return "", err
	}
	out := joinLines(text.String())
	return out, validateDataplane(out)
}

// joinLines puts a space in the place of line ends and the white space around them.
func joinLines(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, " ")
}

// dataplaneParameters are what dataplane.tmpl gets.
type dataplaneParameters struct {
	DataplaneOptions
	XDS    address
	Target string // of gRPC
	// FirstTags and LastTag are the labels of statistics, as JSON objects with commas between them. LastTag takes the
	// place of Consul's rules, so that the list needs no comma more or less.
	FirstTags, LastTag string
}

// VerifiedName returns the name or IP address that Usher's certificate must be for.
func (p dataplaneParameters) VerifiedName() string { return cmp.Or(p.ServerName, p.XDS.Host) }

// ServerIsIP reports whether that is an IP address, which is no server name (RFC 6066 section 3).
func (p dataplaneParameters) ServerIsIP() bool { return net.ParseIP(p.VerifiedName()) != nil }

func dataplaneParametersOf(o DataplaneOptions) (dataplaneParameters, error) {
	p := dataplaneParameters{DataplaneOptions: o}
	if err := p.setTags(); err != nil || o.XDSAddr == "" {
		return p, errors.Join(err, o.checkWithoutAddr())
	}
	var err error
	if p.XDS, err = parseServer(o.XDSAddr); err != nil {
		return p, err
	}
	switch {
	case p.XDS.Path != "":
		return p, fmt.Errorf("xDS address %q: the gateway's pod does not have Usher's socket; use https://host:port", o.XDSAddr)
	case p.XDS.TLS:
		err = o.checkCA()
	case o.CACert != "" || o.CAFile != "" || o.ServerName != "":
		err = fmt.Errorf("xDS address %q: a CA certificate or server name is given, but the address has no TLS; use https://host:port", o.XDSAddr)
	case o.TokenFile != "":
		err = fmt.Errorf("xDS address %q: gRPC sends the token in %s over TLS only; use https://host:port, or send no token", o.XDSAddr, o.TokenFile)
	}
	if err != nil {
		return p, err
	}
	if o.TokenFile != "" && !path.IsAbs(o.TokenFile) {
		return p, fmt.Errorf("token file %q: the path is not absolute; use the path in the gateway's pod", o.TokenFile)
	}
	p.Target = "dns:///" + net.JoinHostPort(p.XDS.Host, strconv.Itoa(int(p.XDS.Port)))
	return p, nil
}

func (p *dataplaneParameters) setTags() error {
	tags := append(destinationTags("{{$.Datacenter}}", false), upstreamTags...)
	last := len(tags) - 1
	var err error
	if p.FirstTags, err = toJSONObjects(tags[:last]); err != nil {
		return err
	}
	p.LastTag, err = toJSONObjects(tags[last:])
	return err
}

// checkWithoutAddr returns an error if there is an option for an address although there is none.
func (o DataplaneOptions) checkWithoutAddr() error {
	if o.CACert != "" || o.CAFile != "" || o.ServerName != "" || o.TokenFile != "" {
		return errors.New("xDS address: there is none, but a CA certificate, server name or token file for it; give the address of Usher")
	}
	return nil
}

// checkCA returns what is wrong with the certificates that an https address needs.
func (o DataplaneOptions) checkCA() error {
	var err error
	switch {
	case o.CACert != "" && o.CAFile != "":
		err = errors.New("certificates and a file are given; give one of them")
	case o.CAFile == "":
		err = checkCertificates(o.CACert)
	case !path.IsAbs(o.CAFile):
		err = fmt.Errorf("the path %q is not absolute; use the path in the gateway's pod", o.CAFile)
	}
	if err != nil {
		return fmt.Errorf("CA certificate for %s: %w", o.XDSAddr, err)
	}
	return nil
}

// dataplaneVariables are the variables that consul-dataplane fills in, as far as the template has them.
type dataplaneVariables struct {
	AdminAccessLogConfig                    []string // each a JSON object
	AdminBindAddress, AdminBindPort         string
	ProxyID, ProxyCluster                   string
	NodeName, Namespace, Partition          string
	Datacenter                              string
	StaticClustersJSON, StaticListenersJSON string // objects with commas between them
	StaticSecretsJSON, StatsSinksJSON       string // the same
	StatsConfigJSON, TracingConfigJSON      string
	StatsFlushInterval                      string
	LocalAgentClusterName                   string
	AgentAddress, AgentPort, AgentSocket    string
}

// fill does what consul-dataplane does with the template.
func (v dataplaneVariables) fill(text string) ([]byte, error) {
	t, err := template.New("bootstrap").Parse(text)
	if err != nil {
		return nil, err
	}
	var out, indented bytes.Buffer
	if err := t.Execute(&out, v); err != nil {
		return nil, err
	}
	if err := json.Indent(&indented, out.Bytes(), "", "  "); err != nil {
		return nil, err
	}
	return indented.Bytes(), nil
}

// sampleStatsConfig is of the form that consul-dataplane gives to the labels of statistics.
const sampleStatsConfig = "{\n\t\t\t\"stats_tags\": [\n\t\t\t\t" +
	`{"regex":"^cluster\\.(a)","tag_name":"a"},` + "\n" + `{"regex":"^cluster\\.(b)","tag_name":"b"},` + "\n" +
	`{"tag_name": "local_cluster", "fixed_value": "ingress-gateway"}` + "\n\t\t\t]}"

// validateDataplane returns why Envoy would refuse the bootstrap of a gateway without further settings.
func validateDataplane(text string) error {
	filled, err := dataplaneVariables{
		AdminBindAddress: "127.0.0.1", AdminBindPort: "19000",
		ProxyID: "ingress-gateway-0", ProxyCluster: "ingress-gateway", NodeName: "node-virtual", Datacenter: "dc1",
		StatsConfigJSON: sampleStatsConfig, LocalAgentClusterName: "consul-dataplane", AgentAddress: "127.0.0.1", AgentPort: "40123",
	}.fill(text)
	if err != nil {
		return err
	}
	return validateFilled(filled)
}

func validateFilled(filled []byte) error {
	var b bootstrapv3.Bootstrap
	if err := protojson.Unmarshal(filled, &b); err != nil {
		return err
	}
	if err := b.ValidateAll(); err != nil {
		return err
	}
	for _, s := range b.GetDynamicResources().GetAdsConfig().GetGrpcServices() {
		for _, c := range s.GetGoogleGrpc().GetCallCredentials() {
			var config grpc_credentialv3.FileBasedMetadataConfig
			if err := c.GetFromPlugin().GetTypedConfig().UnmarshalTo(&config); err != nil {
				return err
			}
			if err := config.ValidateAll(); err != nil {
				return err
			}
		}
	}
	return nil
}
