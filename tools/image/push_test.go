package main

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// serve starts a registry on loopback and returns its address.
func serve(t *testing.T, handler http.Handler) string {
	t.Helper()
	t.Setenv("DOCKER_CONFIG", t.TempDir()) // no credentials of this machine
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// Registries without the API for referrers get a tag that lists them instead.
func TestPushedImageIsTheBuiltOneAndLeadsToItsSBOMs(t *testing.T) {
	c := built(t)
	quiet := registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo))
	for _, tc := range []struct {
		name    string
		handler http.Handler
	}{
		{"with referrers", registry.New(quiet, registry.WithReferrersSupport(true))},
		{"without referrers", registry.New(quiet)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			image := serve(t, tc.handler) + "/team/usher:v1.2.3"
			var out bytes.Buffer
			if err := run(t.Context(), []string{"push", "-out", c.out(), "-image", image}, &out); err != nil {
				t.Fatal(err)
			}
			tag, err := name.NewTag(image)
			if err != nil {
				t.Fatal(err)
			}
			pushed, err := remote.Index(tag)
			if err != nil {
				t.Fatal(err)
			}
			if err := validate.Index(pushed); err != nil {
				t.Error(err)
			}
			got, _ := pushed.Digest()
			if want, _ := imageOf(t, c).Digest(); got != want || out.String() != image+"@"+want.String()+"\n" {
				t.Errorf("the registry has %s, push printed %q, the layout has %s", got, out.String(), want)
			}
			for _, arch := range architectures {
				digest, _ := platform(t, pushed, arch).Digest()
				referrers, err := remote.Referrers(tag.Context().Digest(digest.String()))
				if err != nil {
					t.Fatal(err)
				}
				list, err := referrers.IndexManifest()
				if err != nil || len(list.Manifests) != 1 {
					t.Fatalf("linux/%s has the referrers %+v, want one SBOM (%v)", arch, list, err)
				}
				sbom, err := remote.Image(tag.Context().Digest(list.Manifests[0].Digest.String()))
				if err != nil {
					t.Fatal(err)
				}
				checkSBOM(t, c, platform(t, pushed, arch), arch, sbom)
			}
		})
	}
}

func TestPushSaysWhatToDoAboutMissingCredentials(t *testing.T) {
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	err := run(t.Context(), []string{"push", "-out", built(t).out(), "-image", host + "/usher:v1.2.3"}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "push to "+host+"/usher:v1.2.3: ") || !strings.Contains(err.Error(), "log in with docker login "+host) {
		t.Errorf("got %v", err)
	}
}
