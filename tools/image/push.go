package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// push copies the layout to a registry: the image, then the SBOMs that refer to it, then the tag. So the tag never
// leads to an image that is not complete.
func push(ctx context.Context, o options, out io.Writer) error {
	if o.image == "" {
		return errors.New("no name to push to; use make push IMAGE=REGISTRY/NAME:TAG")
	}
	tag, err := name.NewTag(o.image, name.StrictValidation)
	if err != nil {
		return fmt.Errorf("image %q: %w; use REGISTRY/NAME:TAG", o.image, err)
	}
	dir := filepath.Join(o.out, layoutDir)
	root, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return fmt.Errorf("%s is no OCI layout: %w; run make image first", dir, err)
	}
	image, sboms, err := contents(root)
	if err != nil {
		return fmt.Errorf("%s: %w; run make image again", dir, err)
	}
	digest, err := image.Digest()
	if err != nil {
		return err
	}
	pusher, err := remote.NewPusher(remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithUserAgent("usher"))
	if err != nil {
		return err
	}
	if err := pusher.Push(ctx, tag.Context().Digest(digest.String()), image); err != nil {
		return pushError(tag, err)
	}
	for _, s := range sboms {
		digest, err := s.Digest()
		if err != nil {
			return err
		}
		if err := pusher.Push(ctx, tag.Context().Digest(digest.String()), s); err != nil {
			return pushError(tag, err)
		}
	}
	if err := pusher.Push(ctx, tag, image); err != nil {
		return pushError(tag, err)
	}
	fmt.Fprintf(out, "%s@%s\n", tag.Name(), digest)
	return nil
}

// contents returns what the index.json of a layout names: the image, and its SBOMs.
func contents(root v1.ImageIndex) (image v1.ImageIndex, sboms []v1.Image, err error) {
	manifest, err := root.IndexManifest()
	if err != nil {
		return nil, nil, err
	}
	for _, desc := range manifest.Manifests {
		switch {
		case desc.MediaType.IsIndex() && image == nil:
			image, err = root.ImageIndex(desc.Digest)
		case desc.ArtifactType == sbomType:
			var s v1.Image
			s, err = root.Image(desc.Digest)
			sboms = append(sboms, s)
		default:
			err = fmt.Errorf("unexpected %s %s", desc.MediaType, desc.Digest)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	if image == nil {
		return nil, nil, errors.New("it has no image")
	}
	return image, sboms, nil
}

// pushError says what to do about an error of a registry.
func pushError(tag name.Tag, err error) error {
	var answer *transport.Error
	if errors.As(err, &answer) && (answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden) {
		return fmt.Errorf("push to %s: %w; log in with docker login %s, or with another tool that writes Docker's config.json",
			tag.Name(), err, tag.RegistryStr())
	}
	return fmt.Errorf("push to %s: %w", tag.Name(), err)
}
