package xds

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"sync/atomic"

	"google.golang.org/grpc/credentials"

	"github.com/usherproxy/usher/internal/filewatch"
)

// KeyPair is a server's certificate and key. Run reads them again when their files change, for new connections.
type KeyPair struct {
	certFile, keyFile string
	log               *slog.Logger
	trigger           filewatch.Trigger
	current           atomic.Pointer[tls.Certificate]
}

// NewKeyPair reads a certificate chain and its key, both in PEM.
func NewKeyPair(certFile, keyFile string, log *slog.Logger) (*KeyPair, error) {
	k := &KeyPair{certFile: certFile, keyFile: keyFile, log: log, trigger: filewatch.NewTrigger()}
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

// Run reads the pair again whenever its files change, until ctx ends, and returns nil. It keeps the last good pair and
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
		case final && err.Error() != logged:
			logged = err.Error()
			k.log.Error("cannot use the new TLS certificate; the old one stays in use", "error", err)
		}
		return err == nil
	}
	filewatch.Files([]string{k.certFile, k.keyFile}, filewatch.Options{Read: read, Logger: k.log, Again: k.trigger}).Run(ctx)
	return nil
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
