//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestCertificatesRotateUnderLoad gives the mesh a new root while requests go
// through a gateway on Usher and one on Consul's own xDS. Both come to trust the
// new root; later Consul makes new certificates for the gateway and the
// sidecars, in any order; then all connections between them are opened again. No
// request of Usher's gateway fails.
func TestCertificatesRotateUnderLoad(t *testing.T) {
	t.Parallel()
	s := startChangesStory(t)
	s.StartLoad(t)
	oldRoots := servingCertificates(t, s.OnUsher.Envoy).roots()
	old := map[*lab.Envoy][]string{}
	for _, e := range s.inTheMesh() {
		old[e] = servingCertificates(t, e).leaves()
	}
	s.Make(t, s.newRoot())
	s.wantTrusted(t, oldRoots)
	for _, e := range s.inTheMesh() {
		testprocess.Eventually(t, e.Name+" has a new certificate", leafDeadline, func() error {
			for _, serial := range servingCertificates(t, e).leaves() {
				if !slices.Contains(old[e], serial) {
					return nil
				}
			}
			return errors.New("it has those from before only")
		})
	}
	s.Make(t, s.newConnections())
	// Consul keeps the old root until no certificate of it can be left, which is longer than this test.
	s.wantTrusted(t, oldRoots)
	s.WantNoFailures(t)
}

// wantTrusted wants Usher's Envoy to trust these roots and another one.
func (s *changesStory) wantTrusted(t *testing.T, old []string) {
	t.Helper()
	now := servingCertificates(t, s.OnUsher.Envoy).roots()
	for _, serial := range old {
		if !slices.Contains(now, serial) {
			t.Errorf("the root %s is not trusted any more, while certificates of it are in use", serial)
		}
	}
	if len(now) <= len(old) {
		t.Errorf("the new root is not trusted: %d roots before, %d now", len(old), len(now))
	}
}

// leafDeadline is how long new certificates may take: an agent spreads them
// over half a minute after a new root.
const leafDeadline = 60 * time.Second

func (s *changesStory) inTheMesh() []*lab.Envoy {
	return append(slices.Clone(s.sidecars), s.OnUsher.Envoy, s.OnConsul.Envoy)
}

// newRoot makes Consul's CA sign with a key of another size from now on.
func (s *changesStory) newRoot() lab.Change {
	return lab.Change{Name: "ca: a new root", Apply: func() error {
		_, err := s.Consul.Client.Connect().CASetConfig(&api.CAConfig{
			Provider: "consul",
			Config:   map[string]any{"PrivateKeyType": "ec", "PrivateKeyBits": 384},
		}, nil)
		return err
	}, Visible: func(g *lab.LoadedGateway) error {
		if got, err := fetchCertificates(g.Envoy); err != nil || len(got.roots()) < 2 {
			return errors.Join(err, fmt.Errorf("it trusts %d roots", len(got.roots())))
		}
		return nil
	}}
}

// envoyCertificates are all that an Envoy has in use.
type envoyCertificates struct {
	Certificates []struct {
		Roots []envoyCertificate `json:"ca_cert"`
		Chain []envoyCertificate `json:"cert_chain"`
	} `json:"certificates"`
}

type envoyCertificate struct {
	Serial string `json:"serial_number"`
}

// roots are the serial numbers of all that is trusted.
func (c envoyCertificates) roots() []string {
	serials := map[string]bool{}
	for _, use := range c.Certificates {
		for _, root := range use.Roots {
			serials[root.Serial] = true
		}
	}
	return slices.Sorted(maps.Keys(serials))
}

// leaves are the serial numbers of the Envoy's own certificates: several where
// connections that began with an older one still live.
func (c envoyCertificates) leaves() []string {
	serials := map[string]bool{}
	for _, use := range c.Certificates {
		if len(use.Chain) > 0 {
			serials[use.Chain[0].Serial] = true
		}
	}
	return slices.Sorted(maps.Keys(serials))
}

func fetchCertificates(e *lab.Envoy) (envoyCertificates, error) {
	var c envoyCertificates
	body, err := e.Admin("/certs")
	if err == nil {
		err = json.Unmarshal([]byte(body), &c)
	}
	return c, err
}

func servingCertificates(t *testing.T, e *lab.Envoy) envoyCertificates {
	t.Helper()
	c, err := fetchCertificates(e)
	if err != nil {
		t.Fatalf("certificates of %s: %v", e.Name, err)
	}
	return c
}
