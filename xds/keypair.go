package xds

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/credentials"

	"github.com/usherproxy/usher/internal/expiry"
	"github.com/usherproxy/usher/internal/filewatch"
	"github.com/usherproxy/usher/internal/problem"
)

// KeyPair is a server's certificate and key. Run reads them again when their files change, for new connections.
type KeyPair struct {
	certFile, keyFile string
	log               *slog.Logger
	trigger           filewatch.Trigger
	current           atomic.Pointer[tls.Certificate]
	// rejected is why a new pair is not used; nil: it is. changed is fired when the two change.
	rejected atomic.Pointer[error]
	changed  filewatch.Trigger
}

// NewKeyPair reads a certificate chain and its key, both in PEM.
func NewKeyPair(certFile, keyFile string, log *slog.Logger) (*KeyPair, error) {
	k := &KeyPair{certFile: certFile, keyFile: keyFile, log: log, trigger: filewatch.NewTrigger(), changed: filewatch.NewTrigger()}
	pair, err := k.read()
	if err != nil {
		return nil, err
	}
	k.current.Store(pair)
	return k, nil
}

// Credentials returns the credentials of a gRPC server.
func (k *KeyPair) Credentials() credentials.TransportCredentials {
	return credentials.NewTLS(k.TLSConfig())
}

// TLSConfig returns the configuration of a server.
func (k *KeyPair) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return k.current.Load(), nil },
	}
}

// Run reads the pair again whenever its files change, until ctx ends, and returns nil. It keeps the last valid pair and
// logs a bad one once. The files are rarely replaced at the same moment. So a pair is bad only if it stays bad.
func (k *KeyPair) Run(ctx context.Context) error {
	var logged string
	read := func(final bool) bool {
		pair, err := k.read()
		switch {
		case err == nil:
			logged = ""
			if before := k.current.Swap(pair); string(pair.Certificate[0]) != string(before.Certificate[0]) {
				k.log.Info("TLS certificate replaced", "until", pair.Leaf.NotAfter)
			}
			if k.rejected.Swap(nil) != nil {
				k.log.Info("the TLS certificate and its key can be used again", "certificate", k.certFile, "key", k.keyFile)
			}
		case final && err.Error() != logged:
			logged = err.Error()
			k.rejected.Store(&err)
			k.log.Error("cannot use the new TLS certificate; the old one stays in use", "error", err)
		}
		k.changed.Fire()
		return err == nil
	}
	filewatch.Files([]string{k.certFile, k.keyFile}, filewatch.Options{Read: read, Logger: k.log, Again: k.trigger}).Run(ctx)
	return nil
}

// Register registers the metrics of the certificate.
func (k *KeyPair) Register(r prometheus.Registerer) {
	gauge := func(name, help string, value func(expiry.Validity) float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			return value(chainOf(k.current.Load()).First())
		}))
	}
	gauge("usher_tls_certificate_expiry_timestamp_seconds", "When the certificate of Usher's own ports (--tls-cert), or the one that signs it, expires: the earlier, in seconds since 1970.",
		func(v expiry.Validity) float64 { return float64(v.Until.Unix()) })
	gauge("usher_tls_certificate_lifetime_seconds", "How long the certificate of usher_tls_certificate_expiry_timestamp_seconds is valid altogether.",
		func(v expiry.Validity) float64 { return v.Until.Sub(v.From).Seconds() })
}

// ReportProblems calls report with the problems of the certificate, at once and whenever they change, until ctx ends: it
// expires, or a new one cannot be used (rejected), which Run logs. It returns nil.
func (k *KeyPair) ReportProblems(ctx context.Context, report func(expiry, rejected []problem.Problem)) error {
	for {
		ending, changes := chainProblems(chainOf(k.current.Load()), k.certFile, time.Now())
		var rejected []problem.Problem
		if err := k.rejected.Load(); err != nil {
			rejected = append(rejected, problem.Problem{
				Where: k.certFile, At: problem.Position{File: k.certFile},
				What: fmt.Sprintf("the new certificate cannot be used, and the old one stays in use: %v; correct the files", *err),
			})
		}
		report(ending, rejected)
		var timer <-chan time.Time
		if !changes.IsZero() {
			timer = time.After(time.Until(changes))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-timer:
		case <-k.changed:
		}
	}
}

// Describe returns "ok" with the dates of the certificate, or the problem that it has at a time.
func (k *KeyPair) Describe(now time.Time) string {
	c := chainOf(k.current.Load())
	if problems, _ := chainProblems(c, k.certFile, now); len(problems) > 0 {
		return problems[0].What
	}
	return "ok, until " + c.First().Until.UTC().Format(time.RFC3339)
}

// Reload makes Run read the pair at once.
func (k *KeyPair) Reload() { k.trigger.Fire() }

func (k *KeyPair) read() (*tls.Certificate, error) {
	cert, err := filewatch.ReadFile(k.certFile)
	if err != nil {
		return nil, fmt.Errorf("TLS certificate: %w", err)
	}
	key, err := filewatch.ReadFile(k.keyFile)
	if err != nil {
		return nil, fmt.Errorf("TLS key: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("TLS certificate %s with key %s: %w", k.certFile, k.keyFile, err)
	}
	return &pair, nil
}
