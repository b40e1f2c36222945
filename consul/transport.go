package consul

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/internal/filewatch"
)

// transport is an http.RoundTripper that can replace its connections. When the TLS settings change, new requests use
// new connections. An old connection stays open until its requests are answered.
type transport struct {
	files *tlsFiles
	build func(*tls.Config) *http.Transport

	mu      sync.Mutex
	config  *tls.Config
	current *http.Transport
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	return t.active().RoundTrip(r)
}

func (t *transport) active() *http.Transport {
	config := t.files.current()
	t.mu.Lock()
	defer t.mu.Unlock()
	if config != t.config {
		t.retire()
	}
	if t.current == nil {
		t.config, t.current = config, t.build(config)
	}
	return t.current
}

// CloseIdleConnections makes new requests use new connections; http.Client calls it. After a network failure the old
// connections may be dead, which the transport cannot detect.
func (t *transport) CloseIdleConnections() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.retire()
}

// retire closes the idle connections, and each of the others after its requests. The caller holds mu.
func (t *transport) retire() {
	if t.current != nil {
		t.current.CloseIdleConnections()
		t.current = nil
	}
}

const (
	// maxIdleConnections bounds the connections that are kept for reuse. Every blocking query that ends returns its
	// connection, and the next one takes it at once. With a small number, many queries would need a new connection.
	maxIdleConnections = 200
	maxHeader          = 64 << 10    // bounds the headers of a response
	checkInterval      = time.Second // the shortest time between two checks of the TLS files
)

// deadTime is after how long a connection ends on which the other host acknowledges nothing, whether a request waits to
// be sent or for its answer.
const deadTime = 10 * time.Second

// newDialer returns a dialer of connections that end within deadTime when the other host is gone.
func newDialer() *net.Dialer {
	return &net.Dialer{
		Timeout:         10 * time.Second,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 4 * time.Second, Interval: 2 * time.Second, Count: 2},
		// The kernel sends no keepalive while it repeats data, which it does for a quarter of an hour.
		Control: func(network, _ string, c syscall.RawConn) (err error) {
			if network == "unix" {
				return nil
			}
			return errors.Join(c.Control(func(fd uintptr) {
				err = setDeadTime(int(fd), deadTime)
			}), err)
		},
	}
}

// addressKey is the key of the address in a request's context.
type addressKey struct{}

// transports is an http.RoundTripper with a transport for each address. The context of a request has its address.
type transports struct{ byAddress map[address]*transport }

// RoundTrip implements http.RoundTripper.
func (t *transports) RoundTrip(r *http.Request) (*http.Response, error) {
	at, _ := r.Context().Value(addressKey{}).(address)
	return t.byAddress[at].RoundTrip(r)
}

// CloseIdleConnections is transport.CloseIdleConnections for every address.
func (t *transports) CloseIdleConnections() {
	for _, one := range t.byAddress {
		one.CloseIdleConnections()
	}
}

// How soon an HTTP/2 connection ends whose server is frozen. That of a blocking query ends soon, to recover soon. That of a
// login may not: Consul may have made the login, and only its answer has the name by which it can be ended.
var (
	watchPings = &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 8 * time.Second}
	loginPings = &http.HTTP2Config{SendPingTimeout: loginTimeout, PingTimeout: 15 * time.Second}
)

// newHTTPClient returns a client. Over plain HTTP, where a connection carries one request at a time, it opens at most
// so many connections to an address. A connection detects within deadTime that the server's host is gone, even during a
// blocking query of minutes. Over HTTP/2, pings detect that the server is frozen. Without them, the client speaks HTTP/1.1: no two
// requests share a connection at the same time. A request without a response then closes its connection.
func newHTTPClient(to *targets, files *tlsFiles, connections int, pings *http.HTTP2Config) *http.Client {
	all := &transports{byAddress: map[address]*transport{}}
	for _, t := range to.all {
		all.byAddress[t.http] = &transport{files: files, build: func(config *tls.Config) *http.Transport {
			return newTransport(t.http, config, connections, pings)
		}}
	}
	return &http.Client{
		Transport: all,
		// Consul's API never redirects, and a redirect would carry the token to another host.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func newTransport(a address, config *tls.Config, connections int, pings *http.HTTP2Config) *http.Transport {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(pings != nil) // one connection carries many blocking queries; Consul speaks it over TLS only
	dialer := newDialer()
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        config.Clone(), // the transport adds its protocols
		TLSHandshakeTimeout:    10 * time.Second,
		MaxIdleConns:           maxIdleConnections,
		MaxIdleConnsPerHost:    maxIdleConnections,
		IdleConnTimeout:        90 * time.Second,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxHeader,
		Protocols:              protocols,
		HTTP2:                  pings,
	}
	if isPlain(a) {
		// Without this bound the transport opens a new connection whenever none is idle, and keeps them all.
		t.MaxConnsPerHost = connections
	}
	if a.scheme == "unix" {
		t.Proxy = nil
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", a.path)
		}
	}
	return t
}

// tlsFiles holds the TLS settings for one of Consul's ports. It checks the files when a connection needs the settings,
// once in checkInterval at most. While a file is missing, half written or bad, it keeps the last valid settings.
type tlsFiles struct {
	env    environment
	paths  []string // the files, and the CA directory
	logger *slog.Logger

	mu        sync.Mutex
	checkedAt time.Time
	stamp     [sha256.Size]byte // the state of the files when config was made
	config    *tls.Config
	trouble   fileTrouble
}

// tlsFiles reads the settings for the first time.
func (env environment) tlsFiles(logger *slog.Logger) (*tlsFiles, error) {
	f := &tlsFiles{env: env, logger: logger}
	for _, name := range []string{api.HTTPCAFile, api.HTTPCAPath, api.HTTPClientCert, api.HTTPClientKey} {
		if path := env(name); path != "" {
			f.paths = append(f.paths, path)
		}
	}
	var err error
	f.trouble = fileTrouble{logger: logger, what: "the TLS files for consul", paths: f.paths}
	f.stamp, f.config, err = f.read()
	return f, err
}

// current returns the settings for a new connection. The pointer stays the same until the settings change.
func (f *tlsFiles) current() *tls.Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); len(f.paths) > 0 && now.Sub(f.checkedAt) >= checkInterval {
		f.checkedAt = now
		f.reload()
	}
	return f.config
}

// reload checks the files and reads them if they changed. The caller holds mu.
func (f *tlsFiles) reload() {
	stamp, err := f.fingerprint()
	if err == nil && stamp == f.stamp {
		f.trouble.note(nil)
		return
	}
	stamp, config, err := f.read()
	f.trouble.note(err)
	if err != nil {
		return
	}
	f.stamp, f.config = stamp, config
	f.logger.Info("using the changed TLS files for new connections to consul", "files", f.paths)
}

// read takes the fingerprint before it reads. So the next check detects a change in between.
func (f *tlsFiles) read() (stamp [sha256.Size]byte, config *tls.Config, err error) {
	if stamp, err = f.fingerprint(); err != nil {
		return stamp, nil, fmt.Errorf("TLS files for consul: %w", err)
	}
	config, err = f.env.tls()
	return stamp, config, err
}

// fingerprint returns a hash of the sizes and modification times of the files. A missing file is part of the hash, too.
// The error says that a file must not be read: it is not regular, or too large.
func (f *tlsFiles) fingerprint() (stamp [sha256.Size]byte, err error) {
	hash := sha256.New()
	for _, root := range f.paths {
		_ = filepath.WalkDir(root, func(path string, _ fs.DirEntry, _ error) error { // a missing file is part of the hash, too
			info, failed := os.Stat(path)
			if failed != nil {
				fmt.Fprintf(hash, "%q %v\n", path, failed)
				return nil
			}
			if !info.IsDir() && (!info.Mode().IsRegular() || info.Size() > filewatch.MaxSize) {
				err = fmt.Errorf("%s is not a regular file of at most %d KiB; name a file with certificates or a key in PEM", path, filewatch.MaxSize>>10)
			}
			fmt.Fprintf(hash, "%q %d %d\n", path, info.Size(), info.ModTime().UnixNano())
			return nil
		})
	}
	hash.Sum(stamp[:0])
	return stamp, err
}
