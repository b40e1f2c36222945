// Package kubeapi connects to the API server of Kubernetes, for the packages that read Services, tokens and Usher's own
// objects there.
package kubeapi

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/klog/v2"

	"github.com/usherproxy/usher/internal/filewatch"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/problem"
)

// ErrNotInCluster is the error of Connect without a kubeconfig outside Kubernetes.
var ErrNotInCluster = rest.ErrNotInCluster

// A panic in a goroutine of client-go must not end the process. It ends only that goroutine and its request, and
// client-go retries the request.
func init() {
	log := utilruntime.PanicHandlers
	utilruntime.ReallyCrash = false
	utilruntime.PanicHandlers = []func(context.Context, any){func(ctx context.Context, cause any) {
		guard.Panics.WithLabelValues("kubernetes").Inc()
		for _, handler := range log {
			handler(klog.NewContext(ctx, klog.Background()), cause) // the logger in ctx discards everything
		}
	}}
}

// client-go learns only from the environment how soon it notices that a connection has died in silence: it sends a ping
// after so many seconds without data, and waits so long for the answer. Its own 30 and 15 seconds are long for an outage that
// nothing else shows.
func init() {
	for _, name := range []string{"HTTP2_READ_IDLE_TIMEOUT_SECONDS", "HTTP2_PING_TIMEOUT_SECONDS"} {
		if os.Getenv(name) == "" {
			_ = os.Setenv(name, "5") // fails only for invalid names
		}
	}
}

// dialer connects to the API server. After a partition of the network, an attempt that began in it would take long.
var dialer = net.Dialer{Timeout: 5 * time.Second, KeepAlive: 10 * time.Second}

// Client is a client of the API server. While Run runs, it follows its files, for new requests: the kubeconfig, or the files
// of the pod's service account. The zero value is invalid; use Connect. It implements rest.Interface.
type Client struct {
	kubeconfig string
	account    string // the directory of the pod's service account

	current atomic.Pointer[rest.RESTClient]
	// What current was made of. Run's goroutine owns them.
	files  []string
	config *rest.Config
}

// Connect returns a client of the API server in the file kubeconfig, or, without a file, of the cluster that Usher
// runs in. It sends no request yet. The error is ErrNotInCluster if there is neither.
func Connect(kubeconfig string) (*Client, error) {
	c := &Client{kubeconfig: kubeconfig, account: "/var/run/secrets/kubernetes.io/serviceaccount"}
	return c, c.read()
}

// read reads the files. If that fails, the client stays as it was.
func (c *Client) read() error {
	config, err := c.restConfig()
	if err != nil {
		return err
	}
	files, err := loadFiles(config)
	c.files = slices.DeleteFunc(append([]string{c.kubeconfig}, files...), func(path string) bool { return path == "" })
	if err != nil {
		return err
	}
	if reflect.DeepEqual(config, c.config) {
		return nil
	}
	client, err := c.clientOf(*config)
	if err != nil {
		return fmt.Errorf("kubernetes: %w", err)
	}
	c.config = config
	c.current.Store(client)
	return nil
}

func (c *Client) clientOf(config rest.Config) (*rest.RESTClient, error) {
	scheme := runtime.NewScheme()
	utilruntime.Must(corev1.AddToScheme(scheme)) // it registers constants
	config.QPS = -1                              // the API server has its own limits; time in a queue here would look like an answer that is late
	config.APIPath = "/api"
	config.GroupVersion = &corev1.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.UserAgent = "usher"
	config.Dial = dialer.DialContext
	config.WarningHandler = rest.NoWarnings{} // they are for people who write objects
	return rest.RESTClientFor(&config)
}

// restConfig returns the configuration of the cluster. loadFiles reads and checks the files that it names.
func (c *Client) restConfig() (*rest.Config, error) {
	if c.kubeconfig != "" {
		return kubeconfigIn(c.kubeconfig)
	}
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, ErrNotInCluster
	}
	// rest.InClusterConfig goes on without the certificate authority if it cannot read it.
	return &rest.Config{
		Host: "https://" + net.JoinHostPort(host, port), BearerTokenFile: filepath.Join(c.account, "token"),
		TLSClientConfig: rest.TLSClientConfig{CAFile: filepath.Join(c.account, "ca.crt")},
	}, nil
}

// kubeconfigIn returns the configuration in a file. clientcmd.BuildConfigFromFlags would take the cluster that Usher runs in
// if the file says nothing.
func kubeconfigIn(path string) (*rest.Config, error) {
	if _, err := filewatch.ReadFile(path); err != nil { // nothing but a file of a reasonable size
		return nil, &fileError{path, err}
	}
	raw, err := clientcmd.LoadFromFile(path)
	if err == nil {
		err = clientcmd.ResolveLocalPaths(raw)
	}
	if err != nil {
		return nil, &fileError{path, err}
	}
	for _, named := range namedFiles(raw) { // client-go says of a missing file not always which
		if _, err := filewatch.ReadFile(named); err != nil {
			return nil, &fileError{named, err}
		}
	}
	config, err := clientcmd.NewDefaultClientConfig(*raw, &clientcmd.ConfigOverrides{}).ClientConfig()
	switch {
	case clientcmd.IsEmptyConfig(err):
		return nil, &fileError{path, errNoCluster}
	case err != nil:
		return nil, &fileError{path, err}
	}
	return config, nil
}

// namedFiles returns the paths of the files that the current context of a kubeconfig names.
func namedFiles(raw *clientcmdapi.Config) []string {
	var paths []string
	if c := raw.Contexts[raw.CurrentContext]; c != nil {
		if cluster := raw.Clusters[c.Cluster]; cluster != nil && len(cluster.CertificateAuthorityData) == 0 {
			paths = append(paths, cluster.CertificateAuthority)
		}
		if user := raw.AuthInfos[c.AuthInfo]; user != nil {
			paths = append(paths, user.TokenFile, user.ClientCertificate, user.ClientKey)
		}
	}
	return slices.DeleteFunc(paths, func(path string) bool { return path == "" })
}

// loadFiles puts the content of the files that a configuration names into it, and returns their paths. client-go would read
// some of them every few minutes only.
func loadFiles(c *rest.Config) (paths []string, err error) {
	var token []byte
	ca, cert := c.CAFile, c.CertFile
	for _, f := range []struct {
		path *string
		data *[]byte
	}{
		{&c.BearerTokenFile, &token}, {&c.CAFile, &c.CAData}, {&c.CertFile, &c.CertData}, {&c.KeyFile, &c.KeyData},
	} {
		path := *f.path
		if path == "" || len(*f.data) > 0 {
			continue
		}
		paths = append(paths, path)
		content, readErr := filewatch.ReadFile(path)
		if readErr == nil && len(bytes.TrimSpace(content)) == 0 {
			readErr = errEmpty
		}
		if readErr != nil && err == nil {
			err = &fileError{path, readErr}
		}
		*f.data, *f.path = content, ""
	}
	if len(token) > 0 {
		c.BearerToken = string(bytes.TrimSpace(token))
	}
	if err == nil && ca != "" && !x509.NewCertPool().AppendCertsFromPEM(c.CAData) {
		err = &fileError{ca, errNoCertificate}
	}
	if err == nil && cert != "" {
		if _, pairErr := tls.X509KeyPair(c.CertData, c.KeyData); pairErr != nil {
			err = &fileError{cert, pairErr}
		}
	}
	return paths, err
}

// fileError is why a file cannot be used.
type fileError struct {
	path string
	err  error
}

var (
	errEmpty         = errors.New("it is empty")
	errNoCluster     = errors.New("it names no cluster")
	errNoCertificate = errors.New("it has no certificate in PEM")
)

// Error implements error.
func (e *fileError) Error() string { return "kubernetes: " + e.path + ": " + e.cause() }

// cause returns the error without the path.
func (e *fileError) cause() string {
	if cause, ok := errors.AsType[*fs.PathError](e.err); ok {
		return cause.Err.Error()
	}
	return e.err.Error()
}

// Unwrap returns the cause.
func (e *fileError) Unwrap() error { return e.err }

// Run reads the files again whenever they change, until ctx ends, and returns nil. While they are bad, the last valid ones
// stay in use, which is a problem.
func (c *Client) Run(ctx context.Context, log *slog.Logger, report func([]problem.Problem)) error {
	keep := func(err error) { report([]problem.Problem{c.problem(err)}) }
	read := func(final bool) bool {
		err := c.read()
		switch {
		case err == nil:
			report(nil)
		case final:
			keep(err)
		}
		return err == nil
	}
	filewatch.FilesOf(c.files, func() []string { return c.files }, filewatch.Options{Read: read, Broken: keep, Logger: log}).Run(ctx)
	return nil
}

// problem returns the problem for an error of read.
func (c *Client) problem(err error) problem.Problem {
	p := problem.Problem{Where: cmp.Or(c.kubeconfig, "Usher's service account in Kubernetes")}
	if path, ok := errors.AsType[*fileError](err); ok {
		p.Where, err = path.path, path.err
	}
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		p.What = filewatch.Unreadable(err, "put it back, or correct it")
	} else {
		p.What = fmt.Sprintf("it cannot be used: %v; correct it", err)
	}
	p.What += "; the last valid content stays in use"
	return p
}

// GetRateLimiter implements rest.Interface.
func (c *Client) GetRateLimiter() flowcontrol.RateLimiter { return c.current.Load().GetRateLimiter() }

// Verb implements rest.Interface.
func (c *Client) Verb(verb string) *rest.Request { return c.current.Load().Verb(verb) }

// Post implements rest.Interface.
func (c *Client) Post() *rest.Request { return c.current.Load().Post() }

// Put implements rest.Interface.
func (c *Client) Put() *rest.Request { return c.current.Load().Put() }

// Patch implements rest.Interface.
func (c *Client) Patch(t types.PatchType) *rest.Request { return c.current.Load().Patch(t) }

// Get implements rest.Interface.
func (c *Client) Get() *rest.Request { return c.current.Load().Get() }

// Delete implements rest.Interface.
func (c *Client) Delete() *rest.Request { return c.current.Load().Delete() }

// APIVersion implements rest.Interface.
func (c *Client) APIVersion() schema.GroupVersion { return c.current.Load().APIVersion() }
