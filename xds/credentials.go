package xds

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	"google.golang.org/grpc/credentials"
)

// KeyPair is a server's certificate and key, read again when their files
// change, so that connections made later use the new ones.
type KeyPair struct {
	certFile, keyFile string
	log               *slog.Logger
	current           atomic.Pointer[tls.Certificate]
}

// NewKeyPair reads a certificate chain and its key, both in PEM.
func NewKeyPair(certFile, keyFile string, log *slog.Logger) (*KeyPair, error) {
	k := &KeyPair{certFile: certFile, keyFile: keyFile, log: log}
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
// It watches the directories, not the files: Kubernetes replaces a mounted
// secret by moving a symbolic link that lies beside it.
func (k *KeyPair) Run(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch for the TLS certificate: %w", err)
	}
	defer watcher.Close()
	for _, dir := range []string{filepath.Dir(k.certFile), filepath.Dir(k.keyFile)} {
		if err := watcher.Add(dir); err != nil {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
	}
	return k.follow(ctx, watcher)
}

// follow waits for a quiet moment after a change: the two files are rarely
// replaced at once, and one without the other is no pair.
func (k *KeyPair) follow(ctx context.Context, watcher *fsnotify.Watcher) error {
	const quiet = 200 * time.Millisecond
	// The files may have changed before the watch began.
	settle := time.NewTimer(0)
	defer settle.Stop()
	var complaint string
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-watcher.Events:
			settle.Reset(quiet)
		case err := <-watcher.Errors:
			k.log.Warn("watch for the TLS certificate", "error", err)
		case <-settle.C:
			complaint = k.reload(complaint)
		}
	}
}

// reload returns what is wrong with the files, to be told only once.
func (k *KeyPair) reload(complaint string) string {
	before := k.current.Load()
	if err := k.read(); err != nil {
		if err.Error() != complaint {
			k.log.Error("the new TLS certificate cannot be used, the old one stays", "error", err)
		}
		return err.Error()
	}
	if now := k.current.Load(); string(now.Certificate[0]) != string(before.Certificate[0]) {
		k.log.Info("TLS certificate replaced", "until", now.Leaf.NotAfter)
	}
	return ""
}

func (k *KeyPair) read() error {
	pair, err := tls.LoadX509KeyPair(k.certFile, k.keyFile)
	if err != nil {
		return fmt.Errorf("TLS certificate %s: %w", k.certFile, err)
	}
	k.current.Store(&pair)
	return nil
}
