package listeners

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/ordered"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/testing/golden"
)

const testdata = "testdata"

// fixture is the content of a <case>.in.yaml: a whole snapshot, and the
// releases of Envoy to compile it for, "unknown" when there is none.
type fixture struct {
	Envoys    []string
	Chains    map[string]*gateway.Chain // by name, in the default namespace and partition
	Endpoints map[string]*gateway.Endpoints
	Balancers map[string]*gateway.Balancer                      // by namespace/name
	Usher     struct{ FileAll, ProxyDefaults, FileGateway any } // what stands under the key usher
	gateway.Snapshot
}

// settings makes the layers of what a case has in the way that operators write it.
func (f *fixture) settings() error {
	for _, source := range []struct {
		where string
		raw   any
		into  *settings.Layer
	}{
		{"usher.hcl:1", f.Usher.FileAll, &f.FileAll},
		{`proxy-defaults "global"`, f.Usher.ProxyDefaults, &f.ProxyDefaults},
		{"usher.hcl:20", f.Usher.FileGateway, &f.FileGateway},
	} {
		if source.raw == nil {
			continue
		}
		layer, problems := settings.Layer{}.Update(source.where, source.raw)
		if len(problems) > 0 {
			return errors.New(problems[0].String())
		}
		*source.into = layer
	}
	return nil
}

func parseFixture(in []byte) (*gateway.Snapshot, []gateway.EnvoyVersion, error) {
	asJSON, err := toJSON(in)
	if err != nil {
		return nil, nil, err
	}
	return decodeFixture(asJSON)
}

func toJSON(in []byte) ([]byte, error) {
	var tree any
	if err := yaml.Unmarshal(in, &tree); err != nil {
		return nil, err
	}
	return json.Marshal(tree)
}

func decodeFixture(asJSON []byte) (*gateway.Snapshot, []gateway.EnvoyVersion, error) {
	var f fixture
	dec := json.NewDecoder(bytes.NewReader(asJSON))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return nil, nil, err
	}
	if err := f.settings(); err != nil {
		return nil, nil, err
	}
	f.Snapshot.Chains = map[gateway.ServiceName]*gateway.Chain{}
	for name, chain := range f.Chains {
		f.Snapshot.Chains[gateway.ServiceName{Name: name}] = chain
	}
	for name, b := range f.Balancers {
		if f.Snapshot.Balancers == nil {
			f.Snapshot.Balancers = map[gateway.KubernetesService]*gateway.Balancer{}
		}
		namespace, name, _ := strings.Cut(name, "/")
		f.Snapshot.Balancers[gateway.KubernetesService{Namespace: namespace, Name: name}] = b
	}
	f.Snapshot.Endpoints = ordered.From(f.Endpoints)
	var envoys []gateway.EnvoyVersion
	for _, release := range f.Envoys {
		var e gateway.EnvoyVersion
		if _, err := fmt.Sscanf(release, "%d.%d.%d", &e.Major, &e.Minor, &e.Patch); err != nil {
			return nil, nil, fmt.Errorf("release %q: %w", release, err)
		}
		envoys = append(envoys, e)
	}
	if len(envoys) == 0 {
		envoys = []gateway.EnvoyVersion{{}}
	}
	return &f.Snapshot, envoys, nil
}

// compile compiles one snapshot with a new Compiler.
func compile(s *gateway.Snapshot, in *gateway.Instance, e gateway.EnvoyVersion) *Resources {
	return new(Compiler).Compile(s, in, gateway.Envoy{EnvoyVersion: e})
}

// compiled is what one Envoy of a case gets.
type compiled struct {
	snapshot  *gateway.Snapshot
	instance  *gateway.Instance
	envoy     gateway.EnvoyVersion
	resources *Resources
}

func (c compiled) String() string {
	return fmt.Sprintf("%s/%s on Envoy %s", c.instance.Node, c.instance.ServiceID, c.envoy)
}

func compileFixture(t *testing.T, in []byte) []compiled {
	t.Helper()
	s, envoys := mustParse(t, in)
	var out []compiled
	for _, instance := range s.Instances {
		for _, e := range envoys {
			out = append(out, compiled{snapshot: s, instance: instance, envoy: e, resources: compile(s, instance, e)})
		}
	}
	return out
}

func TestGolden(t *testing.T) {
	golden.Run(t, testdata, func(t *testing.T, in []byte) map[string]any {
		return document(compileFixture(t, in))
	})
}

// document lays out what the Envoys of a case get, by type and then by Envoy. Of the
// types that do not depend on the instance it has what the first Envoy gets, under
// "shared", and of another one what is not the same.
func document(all []compiled) map[string]any {
	doc := map[string]any{}
	add := func(part, envoy string, value any) {
		if reflect.ValueOf(value).Len() == 0 {
			return
		}
		if doc[part] == nil {
			doc[part] = map[string]any{}
		}
		doc[part].(map[string]any)[envoy] = value
	}
	shared := sharedParts(all[0].resources)
	for part, value := range shared {
		add(part, "shared", value)
	}
	for _, c := range all {
		for part, value := range map[string]any{
			"listeners":         golden.List(c.resources.Listeners.Values()),
			"heldBackListeners": c.resources.HeldBackListeners,
			"heldBackEndpoints": c.resources.HeldBackEndpoints,
			"problems":          c.resources.Problems,
			"tokenBuckets":      namedBuckets(c.resources),
		} {
			add(part, c.String(), value)
		}
		for part, value := range sharedParts(c.resources) {
			if !sameMessages(shared[part].([]any), value.([]any)) {
				add(part, c.String(), value)
			}
		}
	}
	return doc
}

func sharedParts(r *Resources) map[string]any {
	return map[string]any{
		"routes":    golden.List(r.Routes.Values()),
		"clusters":  golden.List(r.Clusters.Values()),
		"endpoints": golden.List(r.Endpoints.Values()),
		"secrets":   golden.List(r.Secrets.Values()),
	}
}

// namedBuckets are the token buckets as they go over the wire, for they have no
// names in themselves.
func namedBuckets(r *Resources) []any {
	out := []any{}
	for name, bucket := range r.TokenBuckets.All() {
		packed, err := envoy.Pack(bucket)
		if err != nil {
			panic(err)
		}
		out = append(out, &discoveryv3.Resource{Name: name, Resource: packed})
	}
	return out
}

func sameMessages(a, b []any) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !proto.Equal(a[i].(proto.Message), b[i].(proto.Message)) {
			return false
		}
	}
	return true
}

// TestResourcesAreValidAndOrdered holds for every case what must hold for any
// input.
func TestResourcesAreValidAndOrdered(t *testing.T) {
	eachCompiled(t, func(t *testing.T, c compiled) { checkResources(t, c.resources) })
}

func checkResources(t *testing.T, r *Resources) {
	t.Helper()
	for _, m := range allMessages(r) {
		if err := envoy.Validate(m); err != nil {
			t.Errorf("%T: %v", m, err)
		}
	}
	checkNames(t, "held back listener", r.HeldBackListeners)
	for name := range r.Listeners.Keys() {
		if slices.Contains(r.HeldBackListeners, name) {
			t.Errorf("listener %s is held back and there", name)
		}
	}
	checkNames(t, "held back load assignment", r.HeldBackEndpoints)
	for _, name := range r.HeldBackEndpoints {
		if r.Endpoints.Get(name) != nil || r.Clusters.Get(name) == nil {
			t.Errorf("load assignment %s is held back, and it is there or its cluster is not", name)
		}
	}
	for _, p := range r.Problems {
		if strings.ContainsAny(p.String(), "\r\n") || p.Where == "" || p.What == "" {
			t.Errorf("problem is not a line with where and what: %q", p)
		}
	}
}

// checkNames checks that names are in order and none is there twice.
func checkNames(t *testing.T, kind string, all []string) {
	t.Helper()
	for i := range all {
		if i > 0 && all[i-1] >= all[i] {
			t.Errorf("%s %q does not come after %q", kind, all[i], all[i-1])
		}
	}
}

func allMessages(r *Resources) []envoy.Message {
	var out []envoy.Message
	for _, m := range slices.Concat(golden.List(r.Listeners.Values()), golden.List(r.Routes.Values()), golden.List(r.Clusters.Values()), golden.List(r.Endpoints.Values()), golden.List(r.Secrets.Values()), golden.List(r.TokenBuckets.Values())) {
		out = append(out, m.(envoy.Message))
	}
	return out
}

// eachCase runs check on every case.
func eachCase(t *testing.T, check func(t *testing.T, in []byte)) {
	t.Helper()
	for _, name := range golden.Cases(t, testdata) {
		t.Run(name, func(t *testing.T) { check(t, golden.Input(t, testdata, name)) })
	}
}

// eachCompiled runs check on what every Envoy of every case gets.
func eachCompiled(t *testing.T, check func(t *testing.T, c compiled)) {
	t.Helper()
	eachCase(t, func(t *testing.T, in []byte) {
		for _, c := range compileFixture(t, in) {
			t.Run(c.String(), func(t *testing.T) { check(t, c) })
		}
	})
}

func mustParse(t *testing.T, in []byte) (*gateway.Snapshot, []gateway.EnvoyVersion) {
	t.Helper()
	s, envoys, err := parseFixture(in)
	if err != nil {
		t.Fatal(err)
	}
	return s, envoys
}
