//go:build e2e

package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestFilesThatChange replaces every file that Usher reads in every way in which files are replaced. Bad content causes one
// line that names the file, and the last valid content stays in use. Good content is used without a restart, and after bad
// content one line says so. A file that is half written for a moment causes no line.
func TestFilesThatChange(t *testing.T) {
	t.Parallel()
	// Not by t.Parallel, which lets no more run at once than there are processors: a file waits most of its time.
	var running sync.WaitGroup
	defer running.Wait()
	for _, c := range watchedFiles {
		test := func(t *testing.T) {
			f := c.start(t)
			for i, way := range goodWays {
				f.logged = len(f.lines(t))
				content := f.good(i)
				way.write(t, f.path, content)
				f.waitUsed(t, way.name, content)
				f.wantLines(t, way.name, 0, 0)
			}
			for _, way := range badWays {
				if way.content && f.anyIsGood || way.name == "deletion" && f.mayBeMissing {
					continue
				}
				f.logged = len(f.lines(t))
				before := f.used(t)
				way.write(t, f.path, f.good(0))
				f.waitLines(t, way.name, 1, 0)
				if now := f.used(t); now != before {
					t.Errorf("%s: instead of %q, %q is in use", way.name, before, now)
				}
				writeByRename(t, f.path, f.good(0))
				f.waitLines(t, way.name+", and back", 1, 1)
				f.waitUsed(t, way.name+", and back", f.good(0))
			}
		}
		running.Go(func() { t.Run(c.name, test) })
	}
}

// watchedFile is a file of an Usher that runs.
type watchedFile struct {
	path         string
	good         func(i int) string // contents, each another one
	anyIsGood    bool               // every text is, so that garbage is no mistake that Usher could see
	mayBeMissing bool               // that is no mistake
	used         func(t *testing.T) string
	usedOf       func(content string) string // what used returns with a content; nil: it is not compared

	usher  *testprocess.Process
	logged int // how many lines about the file there were
}

// lines are the lines of the log that name the file, at any level.
func (f *watchedFile) lines(t *testing.T) []string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(testprocess.ReadFile(t, f.usher.Stderr)) {
		if strings.Contains(line, f.path) && !strings.Contains(line, "start check") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

var (
	badLine  = regexp.MustCompile(`level=(?:WARN|ERROR) `)
	goodLine = regexp.MustCompile(`level=INFO msg="(?:problem over|.* can be used again)"`)
)

// count returns how many new lines there are about bad content, and about its end.
func (f *watchedFile) count(t *testing.T) (bad, over int) {
	t.Helper()
	for _, line := range f.lines(t)[f.logged:] {
		if badLine.MatchString(line) {
			bad++
		}
		if goodLine.MatchString(line) {
			over++
		}
	}
	return bad, over
}

func (f *watchedFile) waitLines(t *testing.T, when string, bad, over int) {
	t.Helper()
	testprocess.Eventually(t, fmt.Sprintf("%s: %d lines about bad content, and %d about the end", when, bad, over), testprocess.ChangeDeadline, func() error {
		if gotBad, gotOver := f.count(t); gotBad < bad || gotOver < over {
			return fmt.Errorf("there are %d and %d", gotBad, gotOver)
		}
		return f.usher.Alive()
	})
	f.wantLines(t, when, bad, over)
}

func (f *watchedFile) wantLines(t *testing.T, when string, bad, over int) {
	t.Helper()
	if gotBad, gotOver := f.count(t); gotBad != bad || gotOver != over {
		t.Errorf("%s: %d lines about bad content and %d about the end, want %d and %d:\n%s", when, gotBad, gotOver, bad, over,
			strings.Join(f.lines(t)[f.logged:], "\n"))
	}
}

func (f *watchedFile) waitUsed(t *testing.T, when, content string) {
	t.Helper()
	want := f.usedOf(content)
	testprocess.Eventually(t, when+": the content is in use", testprocess.ChangeDeadline, func() error {
		if got := f.used(t); got != want {
			return fmt.Errorf("it is %q, want %q", got, want)
		}
		return f.usher.Alive()
	})
}

// way is a way to replace a file. With content, the file is readable.
type way struct {
	name    string
	content bool
	write   func(t *testing.T, path, good string)
}

var goodWays = []way{
	{"rename over it", true, writeByRename},
	{"write in place", true, writeInPlace},
	{"swap a link", true, func(t *testing.T, path, good string) { writeByLink(t, path, good) }},
	{"swap it again", true, func(t *testing.T, path, good string) { writeByLink(t, path, good) }},
	{"rename over the link", true, writeByRename},
	{"half, and the rest a moment later", true, func(t *testing.T, path, good string) {
		writeInPlace(t, path, good[:len(good)/2])
		writeInPlace(t, path, good)
	}},
}

const garbage = "<html>\x00 { no\n"

var badWays = []way{
	{"garbage in place", true, func(t *testing.T, path, _ string) { writeInPlace(t, path, garbage) }},
	{"garbage by a rename", true, func(t *testing.T, path, _ string) { writeByRename(t, path, garbage) }},
	{"garbage behind a link", true, func(t *testing.T, path, _ string) { writeByLink(t, path, garbage) }},
	{"half of it", true, func(t *testing.T, path, good string) { writeInPlace(t, path, good[:len(good)/2]) }},
	{"truncation", false, func(t *testing.T, path, _ string) { writeInPlace(t, path, "") }},
	{"deletion", false, func(t *testing.T, path, _ string) { must(t, os.Remove(path)) }},
	{"a directory", false, func(t *testing.T, path, _ string) {
		must(t, os.Remove(path))
		must(t, os.Mkdir(path, 0o700))
	}},
	{"a FIFO", false, func(t *testing.T, path, _ string) { putFIFO(t, path) }},
	{"a link to nothing", false, func(t *testing.T, path, _ string) {
		must(t, os.Remove(path))
		must(t, os.Symlink(path+".none", path))
	}},
	{"a huge file", false, func(t *testing.T, path, _ string) {
		writeByRename(t, path, "")
		must(t, os.Truncate(path, 1<<40))
	}},
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func writeInPlace(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o600))
}

// writeByRename also replaces a directory.
func writeByRename(t *testing.T, path, text string) {
	t.Helper()
	next := filepath.Join(testprocess.NewDir(t), "next")
	writeInPlace(t, next, text)
	if info, err := os.Lstat(path); err == nil && info.IsDir() {
		must(t, os.Remove(path))
	}
	must(t, os.Rename(next, path))
}

// writeByLink makes the file a link to another one, as in a volume of Kubernetes.
func writeByLink(t *testing.T, path, text string) {
	t.Helper()
	dir := testprocess.NewDir(t)
	writeInPlace(t, filepath.Join(dir, "file"), text)
	must(t, os.Symlink(filepath.Join(dir, "file"), filepath.Join(dir, "link")))
	must(t, os.Rename(filepath.Join(dir, "link"), path))
}

// watchedFiles are the files that Usher reads again.
var watchedFiles = []struct {
	name  string
	start func(t *testing.T) *watchedFile
}{
	{"the config file", func(t *testing.T) *watchedFile {
		f := newWatchedFile(t, "usher.hcl", func(i int) string {
			return fmt.Sprintf("usher {\n  proxy_protocol { mode = %q }\n}\n", []string{"strict", "permissive"}[i%2])
		})
		u := f.startInFileMode(t, "--config", f.path)
		f.used, f.usedOf = u.mode, modeIn
		return f
	}},
	{"a file of the config directory", func(t *testing.T) *watchedFile {
		f := newWatchedFile(t, "proxy-defaults.hcl", func(i int) string {
			return fmt.Sprintf("Kind = \"proxy-defaults\"\nName = \"global\"\nConfig {\n  usher {\n    proxy_protocol { mode = %q }\n  }\n}\n", []string{"strict", "permissive"}[i%2])
		})
		f.mayBeMissing = true
		u := f.startInFileMode(t)
		f.used, f.usedOf = u.mode, modeIn
		return f
	}},
	{"the certificate and the key of the xDS port", func(t *testing.T) *watchedFile {
		ca := lab.NewCertificateAuthority(t, "Usher CA")
		var contents []string
		for range goodWays {
			cert, key := ca.Issue(t, testprocess.NewDir(t), "localhost")
			contents = append(contents, testprocess.ReadFile(t, cert)+testprocess.ReadFile(t, key))
		}
		f := newWatchedFile(t, "pair.pem", func(i int) string { return contents[i] })
		u := f.startInFileMode(t, "--tls-cert", f.path, "--tls-key", f.path)
		f.used, f.usedOf = u.serial, func(content string) string { return serialOf(t, content) }
		return f
	}},
	{"the key of the xDS port", func(t *testing.T) *watchedFile {
		certFile, keyFile := lab.NewCertificateAuthority(t, "Usher CA").Issue(t, testprocess.NewDir(t), "localhost")
		cert, key := testprocess.ReadFile(t, certFile), testprocess.ReadFile(t, keyFile)
		f := newWatchedFile(t, "key.pem", func(i int) string { return key + strings.Repeat("\n", i) })
		u := f.startInFileMode(t, "--tls-cert", certFile, "--tls-key", f.path)
		f.used, f.usedOf = u.serial, func(string) string { return serialOf(t, cert) }
		return f
	}},
	{"the kubeconfig", func(t *testing.T) *watchedFile {
		f := newWatchedFile(t, "kubeconfig", func(i int) string { return kubeconfigFor("https://127.0.0.1:1", "", fmt.Sprint(i)) })
		f.startInFileMode(t, "--kubeconfig", f.path)
		return f
	}},
	{"the token for Kubernetes", func(t *testing.T) *watchedFile {
		f := newWatchedFile(t, "token", func(i int) string { return fmt.Sprintf("token-%d", i) })
		f.anyIsGood = true
		config := filepath.Join(testprocess.NewDir(t), "kubeconfig")
		writeInPlace(t, config, strings.Replace(kubeconfigFor("https://127.0.0.1:1", "", ""), `token: ""`, "tokenFile: "+f.path, 1))
		f.startInFileMode(t, "--kubeconfig", config)
		return f
	}},
	{"the certificate authority for Kubernetes", func(t *testing.T) *watchedFile {
		f := newWatchedFile(t, "ca.pem", authorities(t))
		config := filepath.Join(testprocess.NewDir(t), "kubeconfig")
		writeInPlace(t, config, kubeconfigFor("https://127.0.0.1:1", f.path, "t"))
		f.startInFileMode(t, "--kubeconfig", config)
		return f
	}},
	{"the token for Consul", func(t *testing.T) *watchedFile {
		f := newWatchedFile(t, "token", func(i int) string { return fmt.Sprintf("token-%d", i) })
		f.anyIsGood = true
		consul := startFailingConsul(t)
		consul.Start()
		f.startUsher(t, []string{"CONSUL_HTTP_ADDR=" + consul.URL, "CONSUL_HTTP_TOKEN_FILE=" + f.path})
		f.used = func(*testing.T) string { return consul.token.Load().(string) }
		f.usedOf = func(content string) string { return content }
		return f
	}},
	{"the certificate authority for Consul", func(t *testing.T) *watchedFile {
		consul := startFailingConsul(t)
		consul.StartTLS()
		ca := lab.EncodePEM("CERTIFICATE", consul.Certificate().Raw)
		f := newWatchedFile(t, "ca.pem", func(i int) string { return ca + strings.Repeat("\n", i) })
		f.startUsher(t, []string{"CONSUL_HTTP_ADDR=" + consul.URL, "CONSUL_CACERT=" + f.path})
		return f
	}},
}

// authorities returns the contents of a file with certificate authorities.
func authorities(t *testing.T) func(i int) string {
	ca := lab.NewCertificateAuthority(t, "CA").PEM()
	return func(i int) string { return ca + strings.Repeat("\n", i) }
}

func newWatchedFile(t *testing.T, name string, good func(i int) string) *watchedFile {
	t.Helper()
	f := &watchedFile{path: filepath.Join(testprocess.NewDir(t), name), good: good}
	writeInPlace(t, f.path, good(0))
	f.used, f.usedOf = func(*testing.T) string { return "" }, func(string) string { return "" }
	return f
}

// runningUsher is an Usher on ports of the test's own host.
type runningUsher struct {
	*testprocess.Process
	xds, admin string
}

var servingLine = regexp.MustCompile(`msg=serving xds=(\S+) admin=(\S+) `)

// startInFileMode starts an Usher that reads the file's directory, with a gateway in it.
func (f *watchedFile) startInFileMode(t *testing.T, args ...string) *runningUsher {
	t.Helper()
	dir := testprocess.NewDir(t)
	if strings.HasSuffix(f.path, "proxy-defaults.hcl") {
		dir = filepath.Dir(f.path)
	}
	writeInPlace(t, filepath.Join(dir, "services.hcl"), `services { name = "ingress-gateway", kind = "ingress-gateway" }
services { name = "web", address = "127.0.0.1", port = 80 }
`)
	writeInPlace(t, filepath.Join(dir, "gateway.hcl"), `Kind = "ingress-gateway"
Name = "ingress-gateway"
Listeners = [{ Port = 8080, Protocol = "tcp", Services = [{ Name = "web" }] }]
`)
	return f.startUsher(t, nil, append([]string{"--config-dir", dir}, args...)...)
}

func (f *watchedFile) startUsher(t *testing.T, env []string, args ...string) *runningUsher {
	t.Helper()
	u := &runningUsher{Process: testprocess.Start(t, testprocess.Command{
		Name: "usher", Path: testprocess.Usher(t), Env: env,
		Args: append([]string{"serve", "--xds-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0", "--gateway", "ingress-gateway"}, args...),
	})}
	f.usher = u.Process
	testprocess.Eventually(t, "usher serves", testprocess.StartDeadline, func() error {
		found := servingLine.FindStringSubmatch(testprocess.ReadFile(t, u.Stderr))
		if found == nil {
			return errors.Join(errors.New("not yet"), u.Alive())
		}
		u.xds, u.admin = found[1], found[2]
		return nil
	})
	return u
}

var modeInText = regexp.MustCompile(`mode\W+(strict|permissive)`)

// modeIn returns the mode in a text.
func modeIn(text string) string {
	if found := modeInText.FindStringSubmatch(text); found != nil {
		return found[1]
	}
	return ""
}

var askedMode = regexp.MustCompile(`"asked":"(\w+)"`)

// mode returns the mode that the gateway's listener has.
func (u *runningUsher) mode(t *testing.T) string {
	t.Helper()
	response, err := http.Get("http://" + u.admin + "/status")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if found := askedMode.FindSubmatch(text); found != nil {
		return string(found[1])
	}
	return ""
}

// serial returns the serial number of the certificate on the xDS port.
func (u *runningUsher) serial(t *testing.T) string {
	t.Helper()
	conn, err := tls.Dial("tcp", u.xds, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// serialOf returns the serial number of the first certificate in a PEM file.
func serialOf(t *testing.T, content string) string {
	t.Helper()
	block, _ := pem.Decode([]byte(content))
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return certificate.SerialNumber.String()
}

func kubeconfigFor(url, ca, token string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: u, user: {token: %q}}]
`, url, ca, token)
}

// failingConsul answers every request with an error, and remembers the last token.
type failingConsul struct {
	*httptest.Server
	token atomic.Value
}

func startFailingConsul(t *testing.T) *failingConsul {
	t.Helper()
	c := &failingConsul{}
	c.token.Store("")
	c.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if token := r.Header.Get("X-Consul-Token"); token != "" {
			c.token.Store(token)
		}
		http.Error(w, "no", http.StatusInternalServerError)
	}))
	t.Cleanup(c.Close)
	return c
}
