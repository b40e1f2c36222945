package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/usherproxy/usher/internal/filewatch"
	"github.com/usherproxy/usher/internal/loadbalancer"
	"github.com/usherproxy/usher/internal/statedir"
)

// stateKeyEnv is the environment variable with the secret that encrypts the state directory.
const stateKeyEnv = "USHER_STATE_KEY"

// openStateDir opens the state directory; nil if there is none.
func (o serveOptions) openStateDir(log *slog.Logger) (*statedir.Dir, error) {
	if o.stateDir == "" {
		return nil, nil
	}
	key, err := o.stateKey()
	if err != nil {
		return nil, err
	}
	dir, err := statedir.Open(o.stateDir, key)
	if err != nil {
		return nil, fmt.Errorf("--state-dir: %w", err)
	}
	if !dir.Encrypted() {
		log.Warn("private keys are not saved in the state directory: an usher that starts while consul does not answer has no certificate for new envoys; "+
			"to save them encrypted, set --state-key-file or "+stateKeyEnv, "state_dir", o.stateDir)
	}
	return dir, nil
}

// memoryOf returns the state directory for what Kubernetes says; nil if there is none.
func memoryOf(dir *statedir.Dir) loadbalancer.Memory {
	if dir == nil {
		return nil // and not a nil *statedir.Dir in the interface
	}
	return dir
}

// stateKey returns the secret that encrypts the state directory; nil if there is none.
func (o serveOptions) stateKey() ([]byte, error) {
	text := os.Getenv(stateKeyEnv)
	switch {
	case text != "" && o.stateKeyFile != "":
		return nil, errors.New("--state-key-file and " + stateKeyEnv + ": there is one secret; remove one of them")
	case text == "" && o.stateKeyFile == "":
		return nil, nil
	case text != "":
		return longEnough(stateKeyEnv, []byte(text))
	}
	content, err := filewatch.ReadFile(o.stateKeyFile)
	if err != nil {
		return nil, fmt.Errorf("--state-key-file %s %s", o.stateKeyFile, filewatch.Unreadable(err, "name a file with the secret"))
	}
	return longEnough("--state-key-file "+o.stateKeyFile, bytes.TrimSpace(content))
}

// longEnough returns the secret, or an error if it is too short. from says where it is from.
func longEnough(from string, key []byte) ([]byte, error) {
	if len(key) < statedir.MinKey {
		return nil, fmt.Errorf("%s: the secret has %d bytes; use at least %d random ones, such as those of \"openssl rand -hex 32\"", from, len(key), statedir.MinKey)
	}
	return key, nil
}
