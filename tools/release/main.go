// Command release builds what a release of Usher consists of, and writes the changelog.
//
//	go run . build -source DIR -out DIR -version v1.2.3 [-platforms OS/ARCH,...] [-image=false]
//	go run . changelog -source DIR -version v1.2.3 [-date 2026-11-30]
//	go run . notes -source DIR -version v1.2.3
//
// Two builds of one commit give the same bytes.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

const usage = "use: release build -source DIR -out DIR -version v1.2.3, or release changelog or notes -source DIR -version v1.2.3"

// run executes a command line and prints what it made to out.
func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("no command; %s", usage)
	}
	o := options{platforms: allPlatforms, image: true}
	f := flag.NewFlagSet("release "+args[0], flag.ContinueOnError)
	f.StringVar(&o.source, "source", ".", "Root of Usher's module.")
	f.StringVar(&o.version, "version", "", "Version of the release, such as v1.2.3.")
	switch args[0] {
	case "build":
		f.StringVar(&o.out, "out", "dist", "Directory of what is built.")
		f.BoolVar(&o.image, "image", true, "Build the container image, too.")
		f.Func("platforms", "What to build for: OS/ARCH,... Default: "+strings.Join(allPlatforms, ","), func(text string) error {
			o.platforms = strings.Split(text, ",")
			return nil
		})
		if err := f.Parse(args[1:]); err != nil {
			return err
		}
		return build(ctx, o, out)
	case "changelog":
		date := f.String("date", time.Now().UTC().Format(time.DateOnly), "Day of the release.")
		if err := f.Parse(args[1:]); err != nil {
			return err
		}
		return fold(o.source, o.version, *date)
	case "notes":
		if err := f.Parse(args[1:]); err != nil {
			return err
		}
		text, err := notes(o.source, o.version)
		if err != nil {
			return err
		}
		_, err = io.WriteString(out, text)
		return err
	}
	return fmt.Errorf("unknown command %q; %s", args[0], usage)
}
