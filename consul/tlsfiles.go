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

	"github.com/usherproxy/usher/internal/filewatch"
)

// tlsFiles holds the TLS settings for one of Consul's ports. It checks the files
// whenever a connection needs the settings, but at most once in lookPause. While a
// file is missing, half written or bad, it keeps the last good settings.
type tlsFiles struct {
	env    environment
	paths  []string // the files, and the CA directory
	logger *slog.Logger

	mu        sync.Mutex
	checkedAt time.Time
	stamp     [sha256.Size]byte // the state of the files when config was made
	config    *tls.Config
	logged    string // the error that was last logged
}

// lookPause is the shortest time between two checks of the files.
const checkInterval = time.Second

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

// current returns the settings for a new connection. The pointer stays the same
// until the settings change.
func (f *tlsFiles) current() *tls.Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); len(f.paths) > 0 && now.Sub(f.checkedAt) >= checkInterval {
		f.checkedAt = now
		f.reload()
	}
	return f.config
}

// follow checks the files and reads them if they changed. The caller holds mu.
func (f *tlsFiles) reload() {
	stamp, err := f.fingerprint()
	if err == nil && stamp == f.stamp {
		f.logged = ""
		return
	}
	stamp, config, err := f.read()
	if err != nil {
		if err.Error() != f.logged {
			f.logged = err.Error()
			f.logger.Warn("the changed files for TLS towards consul cannot be used; Usher keeps the last good ones", "error", err)
		}
		return
	}
	f.stamp, f.config, f.logged = stamp, config, ""
	f.logger.Info("the changed files for TLS towards consul are used for new connections", "files", f.paths)
}

// read calls look before it reads. So the next look sees a change in between.
func (f *tlsFiles) read() (stamp [sha256.Size]byte, config *tls.Config, err error) {
	if stamp, err = f.fingerprint(); err != nil {
		return stamp, nil, fmt.Errorf("TLS towards consul: %w", err)
	}
	config, err = f.env.tls()
	return stamp, config, err
}

// look returns a hash of the sizes and modification times of the files. A missing
// file is part of the hash, too. The error says that a file must not be read: it is
// not regular, or too large.
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
				err = fmt.Errorf("%s: it is no regular file of at most %d bytes", path, filewatch.MaxSize)
			}
			fmt.Fprintf(hash, "%q %d %d\n", path, info.Size(), info.ModTime().UnixNano())
			return nil
		})
	}
	hash.Sum(stamp[:0])
	return stamp, err
}
