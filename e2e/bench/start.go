//go:build e2e

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// envoyVersion is the Envoy whose start is measured.
const envoyVersion = "1.40.0"

// startDeadline is how long an Envoy may take until its first answer. With Consul's bootstrap it takes a minute.
const startDeadline = 10 * time.Minute

// startInstance is the instance that real Envoys are of. It has the bench's own address, which they can bind.
const startInstance = gatewayName + "-start"

// startCost is what an Envoy's start costs it.
type startCost struct{ took, cpu, memory float64 }

// envoyStart is one round of the time from the start of a real Envoy to its first answer on the gateway's listener:
// with Consul's bootstrap on Consul's own xDS, with Consul's bootstrap on Usher, and with Usher's bootstrap on Usher.
// All else is the same. The control plane is warm.
func (b *bench) envoyStart(ctx context.Context) error {
	if err := b.catalog.writeAddress(ctx, startInstance, b.consul.ip); err != nil {
		return err
	}
	if err := b.startUsher(ctx); err != nil {
		return err
	}
	for _, warm := range []side{b.usherSide(ctx), b.consulSide(ctx)} {
		if _, err := b.firstState(ctx, warm); err != nil {
			return err
		}
	}
	if _, err := b.output(ctx, b.envoyBinary(), "--version"); err != nil { // so that the first one is not read from disk
		return err
	}
	bootstraps := []struct {
		of   string
		make func(context.Context) ([]byte, error)
		cost startCost
	}{
		{"Usher's bootstrap on Usher", b.usherBootstrap, startCost{}},
		{"Consul's bootstrap on Usher", func(ctx context.Context) ([]byte, error) { return b.consulBootstrap(ctx, b.usher.addr) }, startCost{}},
		{"Consul's bootstrap on Consul", func(ctx context.Context) ([]byte, error) { return b.consulBootstrap(ctx, b.consul.xds()) }, startCost{}},
	}
	for i := range bootstraps {
		at := &bootstraps[i]
		config, err := at.make(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", at.of, err)
		}
		if at.cost, err = b.startEnvoy(ctx, config); err != nil {
			return fmt.Errorf("%s: %w", at.of, err)
		}
	}
	own, consulOnUsher, consulOnConsul := bootstraps[0].cost, bootstraps[1].cost, bootstraps[2].cost
	name := ofGateway(len(b.catalog.ports), 1) + "Envoy's start to its first answer, "
	b.report.record(name+"each with its own bootstrap", millisecond, pair(own.took, consulOnConsul.took), ofConsul(12))
	b.report.record(name+"both bootstraps on Usher", millisecond, pair(own.took, consulOnUsher.took), ofConsul(12))
	b.report.record(name+"both bootstraps on Usher: CPU of Envoy", millisecond, pair(own.cpu, consulOnUsher.cpu), ofConsul(12))
	b.report.record(name+"both bootstraps on Usher: memory of Envoy", bytesOf, pair(own.memory, consulOnUsher.memory))
	return nil
}

// adminAddr is where Envoy's admin interface listens.
func (b *bench) adminAddr() string { return net.JoinHostPort(b.consul.ip, "19000") }

func (b *bench) usherBootstrap(ctx context.Context) ([]byte, error) {
	return b.output(ctx, b.usherBin, "bootstrap", "--gateway", gatewayName, "--service-id", startInstance, "--node-name", gatewayNode,
		"--datacenter", "dc1", "--xds-addr", b.usher.addr, "--admin-addr", b.adminAddr())
}

// consulBootstrap returns the bootstrap of `consul connect envoy` for an xDS server.
func (b *bench) consulBootstrap(ctx context.Context, xdsAddr string) ([]byte, error) {
	return b.output(ctx, b.consul.binary, "connect", "envoy", "-bootstrap", "-gateway=ingress", "-proxy-id", startInstance,
		"-node-name", gatewayNode, "-grpc-addr", "http://"+xdsAddr, "-admin-bind", b.adminAddr(),
		"-envoy-binary", b.envoyBinary(), "-ignore-envoy-compatibility")
}

func (b *bench) envoyBinary() string { return filepath.Join(b.tools, "envoy-"+envoyVersion, "envoy") }

// output runs a command that prints a bootstrap.
func (b *bench) output(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.consul.dir, "CONSUL_HTTP_ADDR=" + b.consul.url, "CONSUL_CACERT=" + b.consul.caFile}
	out, err := cmd.Output()
	if ended := (*exec.ExitError)(nil); errors.As(err, &ended) {
		err = fmt.Errorf("%w: %s", err, ended.Stderr)
	}
	return out, err
}

// startEnvoy starts an Envoy with a bootstrap, waits for its first answer on the gateway's listener, and ends it.
func (b *bench) startEnvoy(ctx context.Context, bootstrap []byte) (startCost, error) {
	ctx, cancel := context.WithTimeout(ctx, startDeadline)
	defer cancel()
	if err := waitIdle(ctx, b.consul.process, b.usher.process); err != nil {
		return startCost{}, err
	}
	config := filepath.Join(b.consul.dir, "envoy.json")
	if err := os.WriteFile(config, bootstrap, 0o600); err != nil {
		return startCost{}, err
	}
	begin := time.Now()
	envoy, err := launch(ctx, b.consul.dir, "envoy", []string{
		b.envoyBinary(), "-c", config, "--disable-hot-restart", "--concurrency", "2", "--log-level", "warn",
	}, nil)
	if err != nil {
		return startCost{}, err
	}
	defer envoy.kill()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	err = poll(ctx, envoy, "Envoy answers on the gateway's listener", func() error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(b.consul.ip, "8080"), nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request) // 404: no service has this host
		if err != nil {
			return err
		}
		defer response.Body.Close()
		_, err = io.Copy(io.Discard, response.Body)
		return err
	})
	return startCost{milliseconds(time.Since(begin)), milliseconds(envoy.cpu()), envoy.resident()}, err
}
