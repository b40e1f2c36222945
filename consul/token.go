package consul

import (
	"fmt"
	"strings"
	"sync"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/internal/filewatch"
	"github.com/usherproxy/usher/internal/gateway"
)

// tokens gives Usher's own ACL token. One that stands in a file is read again
// for every request, so that a rotated token counts at once.
type ownToken struct {
	file string // empty: the token does not change

	mu   sync.Mutex
	last gateway.Secret // the last one that was read
}

// tokens reads CONSUL_HTTP_TOKEN_FILE, which wins, and CONSUL_HTTP_TOKEN.
func (env environment) tokens() (*ownToken, error) {
	t := &ownToken{file: env(api.HTTPTokenFileEnvName), last: gateway.Secret(env(api.HTTPTokenEnvName))}
	if t.file == "" {
		return t, nil
	}
	token, err := readToken(t.file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", api.HTTPTokenFileEnvName, err)
	}
	if token != "" {
		t.last = token
	}
	return t, nil
}

func readToken(file string) (gateway.Secret, error) {
	b, err := filewatch.ReadFile(file)
	if err != nil {
		return "", err
	}
	return gateway.Secret(strings.TrimSpace(string(b))), nil
}

// current gives the token to use now; empty means none. While the file is
// missing or empty, as it may be for a moment when somebody writes it, the last
// token counts.
func (t *ownToken) current() gateway.Secret {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.file != "" {
		if token, err := readToken(t.file); err == nil && token != "" {
			t.last = token
		}
	}
	return t.last
}
