package demo

import (
	"bytes"
	"embed"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"text/template"
)

// config holds the lab's configuration as files of Usher's file mode.
//
//go:embed config
var config embed.FS

var configFiles = template.Must(template.ParseFS(config, "config/*"))

// The values of proxy-defaults' setting usher.proxy_protocol.mode that the lab
// has: not there at all, as in the lab's own files, and strict.
const (
	modeUnset  = ""
	modeStrict = "strict"
)

// resourcesFile is the file that holds the lab's custom resources.
const resourcesFile = "custom-resources.yaml"

// writeResources puts the lab's custom resources into the config directory,
// with the mode in their proxy-defaults.
func (l *lab) writeResources(mode string) error {
	return l.writeConfig(resourcesFile, struct {
		Port int
		Mode string
	}{l.socks.gatewayPort, mode})
}

// writeServices puts the registrations of the gateway and the service into
// the config directory.
func (l *lab) writeServices() error {
	return l.writeConfig("services.hcl", struct {
		GatewayAddress string
		ServiceAddress string
		ServicePort    int
	}{gatewayIP, serviceIP, l.socks.echo.Addr().(*net.TCPAddr).Port})
}

// writeConfig replaces a file of the config directory at once: a reader finds
// the old content or the new one, never half of it.
func (l *lab) writeConfig(name string, data any) error {
	var text bytes.Buffer
	if err := configFiles.ExecuteTemplate(&text, name+".tmpl", data); err != nil {
		return fmt.Errorf("config file %s: %w", name, err)
	}
	next := filepath.Join(l.dir, name+".next")
	if err := os.WriteFile(next, text.Bytes(), 0o644); err != nil {
		return fmt.Errorf("config file %s: %w", name, err)
	}
	if err := os.Rename(next, filepath.Join(l.configDir, name)); err != nil {
		return fmt.Errorf("config file %s: %w", name, err)
	}
	return nil
}
