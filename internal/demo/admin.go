package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// admin asks Envoy's admin interface
// (https://www.envoyproxy.io/docs/envoy/latest/operations/admin).
type admin struct {
	addr string // ip:port
}

// admin waits until Envoy has said where its admin interface listens.
func (e *envoy) admin(ctx context.Context) (admin, error) {
	var a admin
	err := await(ctx, "the admin address of Envoy", func(context.Context) (bool, error) {
		text, err := os.ReadFile(e.adminFile)
		if err != nil {
			return false, err
		}
		a.addr = strings.TrimSpace(string(text))
		_, _, err = net.SplitHostPort(a.addr)
		return err == nil, err
	})
	return a, err
}

// ready says whether Envoy has got its first configuration and serves it.
func (a admin) ready(ctx context.Context) (bool, error) {
	text, err := a.get(ctx, "/ready")
	return err == nil, describeState(text, err)
}

// describeState names the state that a refused /ready tells.
func describeState(text []byte, err error) error {
	if state := strings.TrimSpace(string(text)); err != nil && state != "" {
		return fmt.Errorf("envoy is in state %s", state)
	}
	return err
}

// listenerState is what Envoy knows of one listener from its control plane.
type listenerState struct {
	active        bool // in use by the workers, or about to be
	proxyProtocol bool // the active one reads PROXY protocol headers
}

// listenersDump is what /config_dump says of listeners, as far as the demo
// reads it (envoy.admin.v3.ListenersConfigDump.DynamicListener).
type listenersDump struct {
	Configs []struct {
		ActiveState struct {
			Listener struct {
				Address struct {
					SocketAddress struct {
						Port int `json:"port_value"`
					} `json:"socket_address"`
				} `json:"address"`
				Filters []struct {
					Name string `json:"name"`
				} `json:"listener_filters"`
			} `json:"listener"`
		} `json:"active_state"`
		ErrorState struct {
			Details string `json:"details"`
		} `json:"error_state"`
	} `json:"configs"`
}

// listener gives the state of the listener on port. A configuration that Envoy
// refused is an errRefused.
func (a admin) listener(ctx context.Context, port int) (listenerState, error) {
	text, err := a.get(ctx, "/config_dump?resource=dynamic_listeners")
	if err != nil {
		return listenerState{}, err
	}
	var dump listenersDump
	if err := json.Unmarshal(text, &dump); err != nil {
		return listenerState{}, fmt.Errorf("listeners of Envoy: %w", err)
	}
	var s listenerState
	for _, c := range dump.Configs {
		if c.ErrorState.Details != "" {
			return s, fmt.Errorf("%w: %s", errRefused, c.ErrorState.Details)
		}
		if c.ActiveState.Listener.Address.SocketAddress.Port != port {
			continue
		}
		s.active = true
		for _, f := range c.ActiveState.Listener.Filters {
			s.proxyProtocol = s.proxyProtocol || f.Name == "envoy.filters.listener.proxy_protocol"
		}
	}
	return s, nil
}

// listenersTaken gives how many listeners the workers have taken since Envoy
// started, new versions of one listener included.
func (a admin) listenersTaken(ctx context.Context) (int, error) {
	text, err := a.get(ctx, "/stats?format=json&filter=^listener_manager.listener_create_success$")
	if err != nil {
		return 0, err
	}
	var answer struct {
		Stats []struct{ Value int }
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return 0, fmt.Errorf("listener statistics of Envoy: %w", err)
	}
	if len(answer.Stats) != 1 {
		return 0, fmt.Errorf("listener statistics of Envoy: got %d, want 1", len(answer.Stats))
	}
	return answer.Stats[0].Value, nil
}

// get gives the body of an answer; with a status other than 200 it gives both
// the body and an error.
func (a admin) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+a.addr+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("envoy's %s: %s", path, resp.Status)
	}
	return text, err
}

// errRefused is what a wait does not go on after.
var errRefused = errors.New("envoy refused its configuration")

// How long the demo waits for one thing, on a machine that is busy, and how
// often it looks at what cannot tell by itself.
const (
	patience = 30 * time.Second
	interval = 10 * time.Millisecond
)

// await looks until check says true. The error says what did not happen, and
// the reason that check gave last.
func await(ctx context.Context, what string, check func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not there after %s", patience))
	defer cancel()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		done, err := check(ctx)
		if done {
			return nil
		}
		if errors.Is(err, errRefused) {
			return fmt.Errorf("%s: %w", what, err)
		}
		select {
		case <-tick.C:
			continue
		case <-ctx.Done():
		}
		if err != nil {
			return fmt.Errorf("%s: %w: %w", what, context.Cause(ctx), err)
		}
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
}
