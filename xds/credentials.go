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

// KeyPair is a server's certificate and key, read again when their files
// change, so that connections made later use the new ones.
type KeyPair struct {
	certFile, keyFile string
	log               *slog.Logger
	trigger           filewatch.Trigger
	current           atomic.Pointer[tls.Certificate]
}

// NewKeyPair reads a certificate chain and its key, both in PEM.
func NewKeyPair(certFile, keyFile string, log *slog.Logger) (*KeyPair, error) {
	k := &KeyPair{certFile: certFile, keyFile: keyFile, log: log, trigger: filewatch.NewTrigger()}
	if err := k.read(); err != nil {
		return nil, err
	}
	return k, nil
}

// Credentials gives the credentials of a gRPC server.
func (k *KeyPair) Credentials() credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return k.current.Load(), nil
		},
	})
}

// Run reads the pair again after its files changed, until ctx ends. A new pair
// that cannot be used is logged once and the last good one stays.
//
// The two files are rarely replaced at once, and one without the other is no
// pair: only one that stays unfit is complained about.
func (k *KeyPair) Run(ctx context.Context) error {
	var complaint string
	read := func(sure bool) bool {
		err := k.replace()
		switch {
		case err == nil:
			complaint = ""
		case sure && err.Error() != complaint:
			complaint = err.Error()
			k.log.Error("the new TLS certificate cannot be used, the old one stays", "error", err)
		}
		return err == nil
	}
	filewatch.Files([]string{k.certFile, k.keyFile}, filewatch.Options{Read: read, Logger: k.log, Again: k.trigger}).Run(ctx)
	return nil
}

// Reload makes Run read the pair at once, as after its files changed.
func (k *KeyPair) Reload() { k.trigger.Fire() }

func (k *KeyPair) replace() error {
	before := k.current.Load()
	if err := k.read(); err != nil {
		return err
	}
	if now := k.current.Load(); string(now.Certificate[0]) != string(before.Certificate[0]) {
		k.log.Info("TLS certificate replaced", "until", now.Leaf.NotAfter)
	}
	return nil
}

func (k *KeyPair) read() error {
	pair, err := readPair(k.certFile, k.keyFile)
	if err != nil {
		return fmt.Errorf("TLS certificate %s: %w", k.certFile, err)
	}
	k.current.Store(&pair)
	return nil
}

func readPair(certFile, keyFile string) (tls.Certificate, error) {
	cert, err := filewatch.ReadFile(certFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := filewatch.ReadFile(keyFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(cert, key)
}
