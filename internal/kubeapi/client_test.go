package kubeapi

import (
	"context"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/usherproxy/usher/internal/filewatch"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/retry"
)

// followed is a client that follows its files, in front of two API servers with different certificate authorities. Each
// server says its name and the token that it got.
type followed struct {
	dir      string
	servers  map[string]*httptest.Server
	client   *Client
	problems chan []problem.Problem
}

func newFollowed(t *testing.T) *followed {
	t.Helper()
	f := &followed{dir: t.TempDir(), servers: map[string]*httptest.Server{}, problems: make(chan []problem.Problem, 1000)}
	for _, name := range []string{"first", "second"} {
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s", name, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
		}))
		server.EnableHTTP2 = true
		server.StartTLS()
		t.Cleanup(server.Close)
		f.servers[name] = server
	}
	f.write(t, "ca", f.ca("first"))
	f.write(t, "token", "one")
	f.write(t, "kubeconfig", f.kubeconfig("first"))
	var err error
	if f.client, err = Connect(filepath.Join(f.dir, "kubeconfig")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		_ = f.client.Run(ctx, slog.New(slog.DiscardHandler), func(found []problem.Problem) { f.problems <- found })
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return f
}

func (f *followed) ca(server string) string {
	block := &pem.Block{Type: "CERTIFICATE", Bytes: f.servers[server].Certificate().Raw}
	return string(pem.EncodeToMemory(block))
}

func (f *followed) kubeconfig(server string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: %q, certificate-authority: ca, tls-server-name: example.com}}]
users: [{name: u, user: {tokenFile: token}}]
`, f.servers[server].URL)
}

// write replaces a file by a rename.
func (f *followed) write(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join(f.dir, name)
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// ask returns what the API server says.
func (f *followed) ask(t *testing.T) string {
	t.Helper()
	answer, err := f.client.Get().AbsPath("/").MaxRetries(0).DoRaw(t.Context())
	if err != nil {
		return err.Error()
	}
	return string(answer)
}

// await waits until problems with this text are reported, or, with "", that there are none.
func (f *followed) await(t *testing.T, text string) {
	t.Helper()
	for {
		select {
		case found := <-f.problems:
			if (text == "") == (len(found) == 0) && strings.Contains(fmt.Sprint(found), text) {
				return
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("no problem %q was reported", text)
		}
	}
}

func TestClientFollowsItsFiles(t *testing.T) {
	t.Parallel()
	f := newFollowed(t)
	f.await(t, "")
	if got := f.ask(t); got != "first one" {
		t.Fatalf("the server says %q", got)
	}
	for _, change := range []struct{ file, good, bad, problem string }{
		{"token", "two", " \n", "/token: it cannot be used: it is empty"},
		{"ca", f.ca("second") + f.ca("first"), "garbage", "/ca: it cannot be used: it has no certificate in PEM"},
		{"kubeconfig", f.kubeconfig("second"), "{", "kubeconfig"},
		{"ca", f.ca("second"), "", "/ca: it cannot be used: it is empty"},
	} {
		before := f.ask(t)
		f.write(t, change.file, change.bad)
		f.await(t, change.problem)
		if got := f.ask(t); got != before {
			t.Errorf("with a bad %s, the server says %q, before it %q", change.file, got, before)
		}
		f.write(t, change.file, change.good)
		f.await(t, "")
	}
	if got := f.ask(t); got != "second two" {
		t.Errorf("at the end, the server says %q", got)
	}
}

// The files of a service account are checked, and followed while they are bad.
func TestClientInAClusterChecksTheServiceAccount(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
	t.Setenv("KUBERNETES_SERVICE_PORT", "1")
	f := newFollowed(t)
	f.write(t, "ca.crt", f.ca("first"))
	c := &Client{account: f.dir}
	if err := c.read(); err != nil {
		t.Fatal(err)
	}
	good := c.current.Load()
	ca := filepath.Join(f.dir, "ca.crt")
	for content, want := range map[string]string{"": "it is empty", f.ca("first")[:200]: "it has no certificate in PEM", "missing": "no such file or directory"} {
		f.write(t, "ca.crt", content)
		if content == "missing" {
			if err := os.Remove(ca); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.read(); err == nil || err.Error() != "kubernetes: "+ca+": "+want {
			t.Errorf("with the certificate authority %q, the error is %v", content, err)
		}
		if want := []string{filepath.Join(f.dir, "token"), ca}; c.current.Load() != good || !slices.Equal(c.files, want) {
			t.Errorf("with the certificate authority %q, the client is another one, or follows %q", content, c.files)
		}
	}
}

// In Kubernetes, too: an emptied kubeconfig is no reason to go to another cluster.
func TestAKubeconfigWithoutAClusterIsAnError(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
	t.Setenv("KUBERNETES_SERVICE_PORT", "1")
	path := filepath.Join(t.TempDir(), "kubeconfig")
	for _, text := range []string{"", "\n", "{}", "apiVersion: v1\nkind: Config\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Connect(path)
		if want := "kubernetes: " + path + ": it names no cluster"; err == nil || err.Error() != want {
			t.Errorf("of %q, the error is %v, want %s", text, err, want)
		}
	}
}

// A request that waits in a queue of Usher's would look like one that the API server does not answer.
func TestClientHasNoLimit(t *testing.T) {
	t.Parallel()
	f := newFollowed(t)
	if f.client.GetRateLimiter() != nil {
		t.Error("the client limits its requests")
	}
}

// A kubeconfig that names another file is followed there.
func TestClientFollowsTheFilesOfANewKubeconfig(t *testing.T) {
	t.Parallel()
	f := newFollowed(t)
	f.await(t, "")
	f.write(t, "other", "three")
	f.write(t, "kubeconfig", strings.Replace(f.kubeconfig("first"), "tokenFile: token", "tokenFile: other", 1))
	f.await(t, "")
	f.write(t, "other", "four")
	f.await(t, "")
	if got := f.ask(t); got != "first four" {
		t.Errorf("the server says %q", got)
	}
	if _, err := filewatch.ReadFile(filepath.Join(f.dir, "token")); err != nil {
		t.Error(err)
	}
}

func TestPausesRespectTheServer(t *testing.T) {
	t.Parallel()
	if pause := Pause(1, nil); pause > retry.FirstPause {
		t.Errorf("the first pause is %v", pause)
	}
	for seconds, want := range map[int]time.Duration{3: 3 * time.Second, 3600: retry.LongestPause} {
		if pause := Pause(1, fmt.Errorf("list: %w", apierrors.NewTooManyRequests("no", seconds))); pause != want {
			t.Errorf("with Retry-After %d, the pause is %v", seconds, pause)
		}
	}
}
