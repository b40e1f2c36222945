// Command image builds Usher's container image without a container engine, and pushes it. It also builds binaries that
// are in no image, and prints the SBOM of one.
//
//	go run . build -source DIR -out DIR [-image NAME:TAG] [-version VERSION]
//	go run . binaries -source DIR -out DIR -platforms OS/ARCH,... [-version VERSION]
//	go run . push -out DIR -image REGISTRY/NAME:TAG
//	go run . sbom BINARY
//
// The image is for several architectures and made from scratch: it has the static binary, the certificate
// authorities that Mozilla trusts, a user that is not root, the licenses of all of that, and nothing else. Two
// builds of one commit give the same bytes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// run executes a command line and prints what it made to out.
func run(ctx context.Context, args []string, out io.Writer) error {
	const usage = "use: image build -source DIR -out DIR, image binaries -source DIR -out DIR -platforms OS/ARCH,..., " +
		"image push -out DIR -image REGISTRY/NAME:TAG, or image sbom BINARY"
	if len(args) == 0 {
		return fmt.Errorf("no command; %s", usage)
	}
	var o options
	f := flag.NewFlagSet("image "+args[0], flag.ContinueOnError)
	f.StringVar(&o.out, "out", "dist", "Directory of the image, the archive, the binaries and the SBOMs.")
	f.StringVar(&o.image, "image", "", "Name of the image: [REGISTRY/]NAME:TAG. Default for build: usherproxy/usher:VERSION.")
	switch args[0] {
	case "build", "binaries":
		f.StringVar(&o.source, "source", ".", "Root of Usher's module.")
		f.StringVar(&o.version, "version", "", "Version of the binary. Default: the version that Go takes from git.")
		platforms := f.String("platforms", "", "For binaries: what they are for, such as linux/amd64,darwin/arm64.")
		if err := f.Parse(args[1:]); err != nil {
			return err
		}
		var err error
		if o.epoch, err = sourceDateEpoch(); err != nil {
			return err
		}
		if args[0] == "binaries" {
			return binaries(ctx, o, strings.Split(*platforms, ","))
		}
		return build(ctx, o, out)
	case "push":
		if err := f.Parse(args[1:]); err != nil {
			return err
		}
		return push(ctx, o, out)
	case "sbom":
		if len(args) != 2 {
			return errors.New(usage)
		}
		var err error
		if o.epoch, err = sourceDateEpoch(); err != nil {
			return err
		}
		return printSBOM(args[1], o, out)
	}
	return fmt.Errorf("unknown command %q; %s", args[0], usage)
}

// sourceDateEpoch returns the time in SOURCE_DATE_EPOCH; nil if the variable is not set.
// See https://reproducible-builds.org/specs/source-date-epoch/.
func sourceDateEpoch() (*time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		return nil, nil
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil || seconds < 0 {
		return nil, fmt.Errorf("SOURCE_DATE_EPOCH=%s: it must be a number of seconds since 1970; "+
			"unset it to use the commit's time", text)
	}
	t := time.Unix(seconds, 0).UTC()
	return &t, nil
}
