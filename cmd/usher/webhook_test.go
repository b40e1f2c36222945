package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/admission"
	"github.com/usherproxy/usher/xds"
)

// writeKeyPair writes the certificate of a test server for example.com, and its key.
func writeKeyPair(t *testing.T) (cert, key string, roots *x509.CertPool) {
	t.Helper()
	server := httptest.NewTLSServer(http.NotFoundHandler())
	server.Close()
	encoded, err := x509.MarshalPKCS8PrivateKey(server.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	for file, block := range map[string]*pem.Block{
		cert: {Type: "CERTIFICATE", Bytes: server.TLS.Certificates[0].Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: encoded},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	roots = x509.NewCertPool()
	roots.AddCert(server.Certificate())
	return cert, key, roots
}

// TestWebhookHasTheCertificateOfXDS asks the webhook as an API server does, and ends it.
func TestWebhookHasTheCertificateOfXDS(t *testing.T) {
	cert, key, roots := writeKeyPair(t)
	log := slog.New(slog.DiscardHandler)
	pair, err := xds.NewKeyPair(cert, key, log)
	if err != nil {
		t.Fatal(err)
	}
	o := webhookOptions{addr: "127.0.0.1:0", change: admission.Change{Container: "ingress-gateway", Args: []string{"-grpc-port=18002"}}}
	if err := o.check(cert); err != nil {
		t.Fatal(err)
	}
	handshakes := newRecordingHandshakes(t)
	w, err := o.listen(t.Context(), transport{pair, handshakes.Handshakes}, log)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- w.serve(w.listener) }()

	client := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "example.com"}, ForceAttemptHTTP2: true}
	defer client.CloseIdleConnections()
	const review = `{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "1", "operation": "CREATE",
		"kind": {"version": "v1", "kind": "Pod"}, "object": {"spec": {"containers": [{"name": "ingress-gateway", "args": ["-a"]}]}}}}`
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+w.listener.Addr().String()+admission.Path, strings.NewReader(review))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := (&http.Client{Transport: client}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if body, err := io.ReadAll(answer.Body); err != nil || !strings.Contains(string(body), `"patchType":"JSONPatch"`) {
		t.Errorf("the webhook answers %d %s, %v", answer.StatusCode, body, err)
	}
	probe, err := net.Dial("tcp", w.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = probe.(*net.TCPConn).SetLinger(0) // Close resets, as a TCP check does
	probe.Close()
	plain, err := net.Dial("tcp", w.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	fmt.Fprint(plain, "GET / HTTP/1.1\r\n\r\n")
	handshakes.want(t, "port=webhook", "the caller speaks plain text, and this port has TLS")
	w.stop()
	if err := <-ended; err != nil {
		t.Errorf("serve returned %v after stop", err)
	}
}
