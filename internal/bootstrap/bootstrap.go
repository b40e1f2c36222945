// Package bootstrap makes the configuration that an Envoy starts with to become an instance of an ingress gateway:
// who it is, and where Usher is. Everything else Envoy gets from Usher. It also makes the template from which
// consul-dataplane makes that configuration.
//
// bootstrap.yaml has every name as Consul's own bootstraps have it
// (https://developer.hashicorp.com/consul/commands/connect/envoy), so that dashboards and scripts that read Envoy's
// admin interface go on to work.
package bootstrap

import (
	"bytes"
	"cmp"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"text/template"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/usherproxy/usher/internal/gateway"
)

// DefaultAdminAddr is where Envoy's admin interface listens by default, as with Consul.
const DefaultAdminAddr = "127.0.0.1:19000"

// Options say for whom a bootstrap is. Gateway and XDSAddr are needed; every other zero value is a default.
type Options struct {
	Gateway   string // the gateway's service name in Consul
	ServiceID string // of this instance; "" means Gateway
	NodeName  string // of the Consul node it is registered on; "" leaves it to Usher to find
	Namespace string // "" means default
	Partition string // "" means default
	// Datacenter is the gateway's, for the label consul.source.datacenter of statistics; "" means no such label.
	Datacenter string

	// XDSAddr is where Usher listens: host:port or http://host:port (plain text), https://host:port, or unix://path.
	XDSAddr string
	// CACert holds the certificates, in PEM, that Usher's own is verified with. An https address needs it and no
	// other address takes it.
	CACert string
	// ServerName is the DNS name or IP address that Usher's certificate must be for; "" means the host in XDSAddr.
	// For https only.
	ServerName string
	// Token is the ACL token that Envoy shows to Usher; "" sends none. The bootstrap holds it in clear.
	Token gateway.Secret

	AdminAddr string // ip:port of Envoy's admin interface; "" means DefaultAdminAddr
	// ReadyAddr is the ip:port of a listener that answers /ready as the admin interface does, for Consul's health
	// check; "" means no such listener.
	ReadyAddr string
	// OmitDeprecatedTags leaves out the labels of statistics that have names from before Consul 1.9, such as
	// consul.service. Envoy starts faster without them.
	OmitDeprecatedTags bool
	// EagerStats has Envoy create the statistics of requests to a service with the service, and not with the first
	// request. An Envoy before 1.27 can do nothing else, and does not accept a bootstrap that asks it to.
	EagerStats bool
	// SotW asks for the state-of-the-world form of ADS in place of the incremental one.
	SotW bool
}

//go:embed bootstrap.yaml
var source string

var bootstrapTemplate = template.Must(template.New("bootstrap.yaml").Funcs(template.FuncMap{"json": toJSON}).Parse(source))

func toJSON(text string) (string, error) {
	out, err := json.Marshal(text)
	return string(out), err
}

// Write writes the bootstrap as JSON: the same options give the same bytes. The error says which option is wrong.
func Write(w io.Writer, o Options) error {
	p, err := parametersOf(o)
	if err != nil {
		return err
	}
	text, err := p.render()
	if err != nil {
		return fmt.Errorf("bootstrap of %s: %w", o.Gateway, err)
	}
	_, err = w.Write(text)
	return err
}

// parameters are what the template gets.
type parameters struct {
	Options
	Secret     string // the token, in clear
	XDS, Admin address
	Ready      *address
	ServerIsIP bool
	StatsTags  string // JSON
}

func parametersOf(o Options) (parameters, error) {
	p := parameters{Options: o.withDefaults(), Secret: string(o.Token)}
	if o.Gateway == "" {
		return p, errors.New("the gateway has no name; give the service name that its instances have in Consul")
	}
	if strings.ContainsFunc(p.Secret, func(r rune) bool { return r < ' ' || r > '~' }) {
		return p, errors.New("the ACL token has a character that no token has; give the secret ID alone, without a line end")
	}
	var err error
	if p.StatsTags, err = p.statsTags(); err != nil {
		return p, err
	}
	if p.XDS, err = parseServer(o.XDSAddr); err != nil {
		return p, err
	}
	switch {
	case p.XDS.TLS:
		if err := checkCertificates(o.CACert); err != nil {
			return p, fmt.Errorf("CA certificate for %s: %w", o.XDSAddr, err)
		}
		if p.ServerName == "" {
			p.ServerName = p.XDS.Host
		}
		p.ServerIsIP = net.ParseIP(p.ServerName) != nil // RFC 6066 section 3 allows no IP address as server name
	case o.CACert != "" || o.ServerName != "":
		return p, fmt.Errorf("xDS address %q: a CA certificate or server name is given, but the address has no TLS; use https://host:port", o.XDSAddr)
	}
	if p.Admin, err = parseIPPort("admin", p.AdminAddr); err != nil || o.ReadyAddr == "" {
		return p, err
	}
	ready, err := parseIPPort("ready", o.ReadyAddr)
	if err == nil && p.Admin.Port == 0 {
		err = errors.New("the ready listener needs an admin address with a port; use one that is not 0")
	}
	p.Ready = &ready
	return p, err
}

func (o Options) withDefaults() Options {
	o.ServiceID = cmp.Or(o.ServiceID, o.Gateway)
	o.Namespace = cmp.Or(o.Namespace, "default")
	o.Partition = cmp.Or(o.Partition, "default")
	o.AdminAddr = cmp.Or(o.AdminAddr, DefaultAdminAddr)
	return o
}

// render fills in the template. What Envoy's own rules reject is an error.
func (p parameters) render() ([]byte, error) {
	var text bytes.Buffer
	if err := bootstrapTemplate.Execute(&text, p); err != nil {
		return nil, err
	}
	var tree any
	if err := yaml.Unmarshal(text.Bytes(), &tree); err != nil {
		return nil, err
	}
	asJSON, err := json.Marshal(tree)
	if err != nil {
		return nil, err
	}
	var b bootstrapv3.Bootstrap
	if err := protojson.Unmarshal(asJSON, &b); err != nil {
		return nil, err
	}
	if err := errors.Join(b.ValidateAll(), validateSockets(&b)); err != nil {
		return nil, err
	}
	// protojson varies its white space on purpose, json.Indent does not.
	loose, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(&b)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = json.Indent(&out, loose, "", "  ")
	out.WriteByte('\n')
	return out.Bytes(), err
}

// validateSockets does what no validator does for a message inside an Any.
func validateSockets(b *bootstrapv3.Bootstrap) error {
	for _, c := range b.GetStaticResources().GetClusters() {
		if c.TransportSocket == nil {
			continue
		}
		var context tlsv3.UpstreamTlsContext
		if err := c.TransportSocket.GetTypedConfig().UnmarshalTo(&context); err != nil {
			return err
		}
		if err := context.ValidateAll(); err != nil {
			return err
		}
	}
	return nil
}
