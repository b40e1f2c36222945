//go:build kubernetes

package cluster

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// image is what a container image brings: programs, which are built from source
// or fetched by `make kubernetes`, and the command to start.
type image struct {
	programs   map[string]string // name in binDirectory: path on this machine
	entrypoint []string
}

// Scripts in images. The control plane of chart 2.0 cannot be had: that of 1.9
// runs, without the flags that it does not know.
const (
	consulEntrypoint = `#!/bin/sh
exec "$@"
`
	olderControlPlane = `#!/bin/sh
for argument; do
	shift
	case $argument in
	-enable-gateway-scaling=* | -enabe-tcp-route=*) ;;
	*) set -- "$@" "$argument" ;;
	esac
done
exec consul-k8s-control-plane-1.9 "$@"
`
)

// images are the images that the cluster can pull, by name:tag, or by name for all
// other tags.
func images(t *testing.T, dir string, o Options) map[string]image {
	t.Helper()
	script := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		return file
	}
	entrypoint := script("docker-entrypoint.sh", consulEntrypoint)
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// A missing program fails the pod that needs it.
	tool := func(path ...string) string {
		return filepath.Join(append([]string{os.Getenv("USHER_TOOLS")}, path...)...)
	}
	controlPlane := tool("consul-k8s", "consul-k8s-control-plane")
	return map[string]image{
		"hashicorp/consul": {
			programs: map[string]string{
				"consul": tool("consul-"+o.Consul, "consul"), "docker-entrypoint.sh": entrypoint,
			},
			entrypoint: []string{"docker-entrypoint.sh"},
		},
		"hashicorp/consul-k8s-control-plane": {
			programs: map[string]string{"consul-k8s-control-plane": controlPlane},
		},
		"hashicorp/consul-k8s-control-plane:2.0.3": {
			programs: map[string]string{
				"consul-k8s-control-plane": script("older-control-plane", olderControlPlane), "consul-k8s-control-plane-1.9": controlPlane,
			},
		},
		"hashicorp/consul-dataplane": {
			programs:   map[string]string{"consul-dataplane": tool("consul-k8s", "consul-dataplane"), "envoy": tool("envoy-"+o.Envoy, "envoy")},
			entrypoint: []string{"consul-dataplane"},
		},
		"hashicorp/http-echo": {
			programs:   map[string]string{httpEcho: executable},
			entrypoint: []string{httpEcho},
		},
		"usherproxy/usher": {
			programs:   map[string]string{"usher": os.Getenv("USHER_BIN")},
			entrypoint: []string{"usher"},
		},
	}
}

// image is the image of a reference, whatever its registry.
func (c *Cluster) image(reference string) (image, error) {
	tagged := path.Base(path.Dir(reference)) + "/" + path.Base(reference)
	name, _, _ := strings.Cut(tagged, ":")
	for _, key := range []string{tagged, name} {
		if i, known := c.images[key]; known {
			return i, nil
		}
	}
	return image{}, fmt.Errorf("ErrImagePull: this cluster has no image %s (%s)", name, reference)
}

func (i image) mounts() []mount {
	var mounts []mount
	for name, source := range i.programs {
		mounts = append(mounts, mount{Source: source, Target: path.Join(binDirectory, name), ReadOnly: true})
	}
	return mounts
}

// command is the container's command, or the image's.
func (i image) command(spec corev1.Container) []string {
	if len(spec.Command) > 0 {
		return slices.Clone(spec.Command)
	}
	return slices.Clone(i.entrypoint)
}
