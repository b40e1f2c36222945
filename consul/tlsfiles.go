package consul

import (
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/internal/follow"
)

// tlsFiles gives the TLS settings towards one of Consul's ports. The files that
// they name are looked at whenever they are needed, but at most once in
// lookPause. While one is missing, half written or bad, the last good settings
// count.
type tlsFiles struct {
	env    environment
	paths  []string // of the files and of a directory
	logger *slog.Logger

	mu     sync.Mutex
	looked time.Time
	stamp  [sha256.Size]byte // of what config was made of
	config *tls.Config
	told   string // the error that the log was last told
}

// lookPause bounds how often the files are looked at.
const lookPause = time.Second

// tlsFiles reads the settings for the first time.
func (env environment) tlsFiles(logger *slog.Logger) (*tlsFiles, error) {
	f := &tlsFiles{env: env, logger: logger}
	for _, name := range []string{api.HTTPCAFile, api.HTTPCAPath, api.HTTPClientCert, api.HTTPClientKey} {
		if path := env(name); path != "" {
			f.paths = append(f.paths, path)
		}
	}
	var err error
	f.stamp, f.config, err = f.read()
	return f, err
}

// current returns the settings for a new connection. They are the same pointer
// until they change.
func (f *tlsFiles) current() *tls.Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); len(f.paths) > 0 && now.Sub(f.looked) >= lookPause {
		f.looked = now
		f.follow()
	}
	return f.config
}

// follow is called with mu held.
func (f *tlsFiles) follow() {
	stamp, err := f.look()
	if err == nil && stamp == f.stamp {
		f.told = ""
		return
	}
	stamp, config, err := f.read()
	if err != nil {
		if err.Error() != f.told {
			f.told = err.Error()
			f.logger.Warn("the changed files for TLS towards consul cannot be used; the last good ones count", "error", err)
		}
		return
	}
	f.stamp, f.config, f.told = stamp, config, ""
	f.logger.Info("the changed files for TLS towards consul are used for new connections", "files", f.paths)
}

// read looks before it reads: what changes in between is seen the next time.
func (f *tlsFiles) read() (stamp [sha256.Size]byte, config *tls.Config, err error) {
	if stamp, err = f.look(); err != nil {
		return stamp, nil, fmt.Errorf("TLS towards consul: %w", err)
	}
	config, err = f.env.tls()
	return stamp, config, err
}

// look returns a hash of the files' sizes and times of change, whether they are
// there or not. Its error is that one should not be read.
func (f *tlsFiles) look() (stamp [sha256.Size]byte, err error) {
	hash := sha256.New()
	for _, root := range f.paths {
		_ = filepath.WalkDir(root, func(path string, _ fs.DirEntry, _ error) error { // one that is missing has its place in the hash
			info, failed := os.Stat(path)
			if failed != nil {
				fmt.Fprintf(hash, "%q %v\n", path, failed)
				return nil
			}
			if !info.IsDir() && (!info.Mode().IsRegular() || info.Size() > follow.MaxSize) {
				err = fmt.Errorf("%s: it is no regular file of at most %d bytes", path, follow.MaxSize)
			}
			fmt.Fprintf(hash, "%q %d %d\n", path, info.Size(), info.ModTime().UnixNano())
			return nil
		})
	}
	hash.Sum(stamp[:0])
	return stamp, err
}
