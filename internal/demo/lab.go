package demo

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"text/template"
	"time"
)

// The addresses of the parts. On Linux, all of 127.0.0.0/8 belongs to the machine; elsewhere, addresses other than
// 127.0.0.1 have to be added first.
const (
	clientIP   = "127.0.0.7"
	balancerIP = "127.0.0.2"
	gatewayIP  = "127.0.0.1"
	serviceIP  = "127.0.0.1"
	xdsIP      = "127.0.0.1"
)

// gatewayPort is the lab's port. If it is in use, the demo takes another one.
const gatewayPort = 8080

// ports are the sockets and addresses that the parts listen on.
type ports struct {
	service      net.Listener
	plain, proxy net.Listener // of the balancer: without and with a PROXY header
	gateway      int          // Envoy binds it
	xdsAddr      string       // Usher binds it
}

// listen opens a socket at every address before anything runs, so that a missing address is an error at once.
func listen(ctx context.Context) (*ports, error) {
	var config net.ListenConfig
	var sockets []net.Listener
	for _, ip := range []string{serviceIP, balancerIP, balancerIP, xdsIP, gatewayIP, clientIP} {
		socket, err := config.Listen(ctx, "tcp", net.JoinHostPort(ip, "0"))
		if err != nil {
			closeAll(sockets)
			return nil, fmt.Errorf("the demo needs the loopback addresses %s, %s and %s: %w", gatewayIP, balancerIP, clientIP, err)
		}
		sockets = append(sockets, socket)
	}
	closeAll(sockets[3:]) // others bind these, and the client needs the address only
	p := &ports{
		service: sockets[0], plain: sockets[1], proxy: sockets[2],
		xdsAddr: sockets[3].Addr().String(), gateway: portOf(sockets[4]),
	}
	if socket, err := config.Listen(ctx, "tcp", net.JoinHostPort(gatewayIP, strconv.Itoa(gatewayPort))); err == nil {
		socket.Close()
		p.gateway = gatewayPort
	}
	return p, nil
}

func portOf(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }

func closeAll(sockets []net.Listener) {
	for _, s := range sockets {
		s.Close()
	}
}

func (p *ports) close() { closeAll([]net.Listener{p.service, p.plain, p.proxy}) }

// lab holds the parts together and makes requests.
type lab struct {
	dir       string // for the files that the demo writes
	configDir string // below dir: what Usher reads
	ports     *ports
	requests  chan string // what the service got; the next request waits until it was read
	envoy     *envoy
}

// newLab writes the initial configuration below dir.
func newLab(dir string, p *ports) (*lab, error) {
	l := &lab{dir: dir, configDir: filepath.Join(dir, "config"), ports: p, requests: make(chan string, 1)}
	if err := os.Mkdir(l.configDir, 0o755); err != nil {
		return nil, fmt.Errorf("directory for the demo's config entries: %w", err)
	}
	return l, errors.Join(l.writeConfig("services.hcl", map[string]any{
		"GatewayAddress": gatewayIP, "ServiceAddress": serviceIP, "ServicePort": portOf(p.service),
	}), l.writeResources(""))
}

// configFiles are the lab's configuration as files of Usher's file mode.
//
//go:embed config
var configFiles embed.FS

var configTemplates = template.Must(template.ParseFS(configFiles, "config/*"))

// modeStrict is the value that the lab gives usher.proxy_protocol.mode in proxy-defaults. At first it is not set.
const modeStrict = "strict"

// resourcesFile is the file that holds the lab's custom resources.
const resourcesFile = "custom-resources.yaml"

// writeResources writes the lab's custom resources to the config directory, with the mode in their proxy-defaults.
func (l *lab) writeResources(mode string) error {
	return l.writeConfig(resourcesFile, map[string]any{"Port": l.ports.gateway, "Mode": mode})
}

// writeConfig replaces a file of the config directory atomically: a reader gets the old content or the new one.
func (l *lab) writeConfig(name string, data any) error {
	var text bytes.Buffer
	next := filepath.Join(l.dir, name+".next")
	err := configTemplates.ExecuteTemplate(&text, name+".tmpl", data)
	if err == nil {
		err = os.WriteFile(next, text.Bytes(), 0o644)
	}
	if err == nil {
		err = os.Rename(next, filepath.Join(l.configDir, name))
	}
	if err != nil {
		return fmt.Errorf("config file %s: %w", name, err)
	}
	return nil
}

func (l *lab) gatewayAddr() string { return net.JoinHostPort(gatewayIP, strconv.Itoa(l.ports.gateway)) }

// balancerAddr is where the balancer accepts the connections to which it adds a PROXY header, or those to which it
// adds none.
func (l *lab) balancerAddr(header bool) string {
	if header {
		return l.ports.proxy.Addr().String()
	}
	return l.ports.plain.Addr().String()
}

// runStory waits for the gateway and makes the three requests. With Stay it then prints all further traffic until
// ctx ends.
func (l *lab) runStory(ctx context.Context, o Options) error {
	if err := waitFor(ctx, "the gateway's first configuration", l.envoy.ready); err != nil {
		return err
	}
	if err := l.waitForListener(ctx, "the gateway's listener", "", 0); err != nil {
		return err
	}
	fmt.Fprintf(o.Out, "client %s --> load balancer %s --> gateway (Envoy) %s --> service static-server\n", clientIP, balancerIP, l.gatewayAddr())
	fmt.Fprintf(o.Out, "The client requests http://%s/ three times.\n", host)
	if err := runScenes(ctx, l, o.Out); err != nil {
		return err
	}
	if !o.Stay {
		return nil
	}
	l.printInstructions(o.Out)
	return l.printTraffic(ctx, o.Out)
}

// waitForListener waits until Envoy's workers use the gateway's listener with the mode, after they had started a
// number of listeners before.
func (l *lab) waitForListener(ctx context.Context, what, mode string, before int) error {
	return waitFor(ctx, what, func(ctx context.Context) (bool, error) {
		active, proxyProtocol, err := l.envoy.listener(ctx, l.ports.gateway)
		if err != nil || !active || proxyProtocol != (mode == modeStrict) {
			return false, err
		}
		created, err := l.envoy.listenersCreated(ctx)
		return created > before, err
	})
}

// setStrict sets the mode in the config files and waits until Envoy's workers use it. It returns how long that took.
func (l *lab) setStrict(ctx context.Context) (time.Duration, error) {
	before, err := l.envoy.listenersCreated(ctx)
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := l.writeResources(modeStrict); err != nil {
		return 0, err
	}
	err = l.waitForListener(ctx, "the new mode in Envoy", modeStrict, before)
	return time.Since(begin), err
}

// request makes one request through the balancer. It returns what the client, the access log and the service got.
func (l *lab) request(ctx context.Context, header bool) (got result, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no response or no access log line after %s", timeout))
	defer cancel()
	if got.response, err = get(ctx, l.balancerAddr(header)); err != nil {
		return result{}, err
	}
	// The service reports a request before it responds, and Envoy writes its log line after it has passed the
	// response on. So the log line comes last.
	select {
	case line := <-l.envoy.accessLog:
		got.log, err = parseLogEntry(line)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	select {
	case got.service = <-l.requests:
	default:
		got.service = notReached
	}
	return got, err
}

// printInstructions tells the user how to send requests by hand.
func (l *lab) printInstructions(out io.Writer) {
	curl := func(header bool) string {
		return fmt.Sprintf("curl --interface %s -H 'Host: %s' http://%s/", clientIP, host, l.balancerAddr(header))
	}
	fmt.Fprintf(out, `
Everything keeps running until you press Ctrl-C. You can send requests
  through the balancer with PROXY protocol v2:
    %s
  and through the balancer without it, which the gateway now rejects:
    %s
The configuration is in %s; changes to its files apply at once.
Access log and requests at the service:
`, curl(true), curl(false), l.configDir)
}

// printTraffic prints access log lines and requests at the service until ctx ends.
func (l *lab) printTraffic(ctx context.Context, out io.Writer) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case line := <-l.envoy.accessLog:
			fmt.Fprintf(out, "access log   %s\n", line)
		case received := <-l.requests:
			fmt.Fprintf(out, "service got  %s\n", received)
		}
	}
}
