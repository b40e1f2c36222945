package main

import (
	"context"
	"debug/buildinfo"
	"strings"

	"github.com/usherproxy/usher/tools/image/notices"
)

// notices returns the license texts of what is in a binary for any platform.
func (r release) notices(ctx context.Context) ([]byte, error) {
	var binaries []*buildinfo.BuildInfo
	for _, platform := range r.platforms {
		system, arch, _ := strings.Cut(platform, "/")
		info, err := buildinfo.ReadFile(product{release: r, system: system, arch: arch}.binary())
		if err != nil {
			return nil, err
		}
		binaries = append(binaries, info)
	}
	return notices.OfBinaries(ctx, r.source, binaries...)
}
