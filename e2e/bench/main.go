//go:build e2e

package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	services, envoys       int
	changes, besideChanges int
	rounds                 int
	crowdSize              int
	perConnection          int
	small, large           int
	idle                   time.Duration
	rotation, cold, plain  bool
	start, startOnly       bool
	usherBin, tools        string
	jsonTo, markdownTo     string
}

func parseFlags() (options, error) {
	var o options
	quick := flag.Bool("quick", false, "a small profile that ends within a minute; other flags change it")
	flag.IntVar(&o.services, "services", 1000, "services of the gateway")
	flag.IntVar(&o.envoys, "envoys", 16, "Envoys, each of an instance of its own")
	flag.IntVar(&o.changes, "changes", 50, "endpoint changes that Usher alone delivers, a round")
	flag.IntVar(&o.besideChanges, "beside", 15, "endpoint changes that both deliver, a round")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds, of which the median counts")
	flag.IntVar(&o.crowdSize, "crowd", 500, "Envoys of the part with many; 0 leaves it out")
	flag.IntVar(&o.perConnection, "per-connection", 10, "how many Envoys of that part share a connection")
	flag.IntVar(&o.small, "small", 100, "services at which growth begins; 0 leaves it out")
	flag.IntVar(&o.large, "large", 5000, "services at which growth ends")
	flag.DurationVar(&o.idle, "idle", time.Minute, "how long CPU is measured while nothing changes; the bar is for a minute")
	flag.BoolVar(&o.rotation, "rotation", true, "rotate the mesh's root, which takes up to half a minute a round")
	flag.BoolVar(&o.cold, "cold", true, "measure cold starts")
	flag.BoolVar(&o.start, "start", true, "measure the start of real Envoys, which takes two minutes with Consul's bootstrap")
	flag.BoolVar(&o.startOnly, "start-only", false, "measure the start of real Envoys and nothing else")
	flag.BoolVar(&o.plain, "plain", false, "reach Consul over plain HTTP instead of HTTPS")
	flag.StringVar(&o.usherBin, "usher", cmp.Or(os.Getenv("USHER_BIN"), "bin/usher"), "Usher's binary")
	flag.StringVar(&o.tools, "tools", cmp.Or(os.Getenv("USHER_TOOLS"), ".tools"), "where the real parts are")
	flag.StringVar(&o.jsonTo, "json", "", "file for the rows with every round as JSON")
	flag.StringVar(&o.markdownTo, "markdown", "", "Markdown file that has the lines "+beginMark+" and "+endMark+": the table is put between them")
	flag.Parse()
	if *quick {
		err := flag.CommandLine.Parse(append([]string{
			"-services=100", "-envoys=4", "-changes=20", "-beside=5", "-rounds=1", "-crowd=50", "-small=20", "-large=200",
			"-idle=2s", "-rotation=false", "-start=false",
		}, os.Args[1:]...))
		if err != nil {
			return o, err
		}
	}
	var err error
	if o.usherBin, err = filepath.Abs(o.usherBin); err != nil {
		return o, err
	}
	if o.tools, err = filepath.Abs(o.tools); err != nil {
		return o, err
	}
	return o, o.check()
}

// String says of what size the run is.
func (o options) String() string {
	transport := "HTTPS"
	if o.plain {
		transport = "plain HTTP"
	}
	return fmt.Sprintf("%s services, %d Envoys, %d rounds of %d changes (%d where both deliver), Consul's API over %s",
		thousands(o.services), o.envoys, o.rounds, o.changes, o.besideChanges, transport)
}

func (o options) check() error {
	switch {
	case flag.NArg() > 0:
		return fmt.Errorf("%q is not a flag", flag.Arg(0))
	case o.services < 2 || o.envoys < 1 || o.changes < 1 || o.besideChanges < 1 || o.rounds < 1 || o.perConnection < 1:
		return errors.New("-services must be at least 2, and -envoys, -changes, -beside, -rounds and -per-connection at least 1")
	case o.crowdSize != 0 && o.crowdSize <= o.envoys:
		return errors.New("-crowd must be more than -envoys, or 0")
	case o.small != 0 && (o.small < 2 || o.small > o.services || o.services > o.large):
		return errors.New("-small must be at least 2 and at most -services, and -services at most -large")
	}
	if o.markdownTo != "" {
		if _, _, err := placeIn(o.markdownTo); err != nil {
			return err
		}
	}
	for path, cure := range map[string]string{
		o.usherBin: "make build", filepath.Join(o.tools, "consul-"+consulVersion, "consul"): "make tools",
		filepath.Join(o.tools, "envoy-"+envoyVersion, "envoy"): "make tools",
	} {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("%w: run %q", err, cure)
		}
	}
	return nil
}

// bench is one run.
type bench struct {
	options
	consul  *consulServer
	usher   *usherServer // nil before the first
	catalog catalog
	library resourceCache
	report  report
	turn    int // endpoint changes so far
	marks   int // changes of configuration so far
	bits    int // of the key of the mesh's root
}

func init() { runtime.LockOSThread() } // see launch

func main() {
	o, err := parseFlags()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures, and writes what it has measured also when it had to give up.
func run(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "usher-bench-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\nthe outputs of the parts are in %s", err, dir)
			return
		}
		err = os.RemoveAll(dir)
	}()
	m := describeMachine(o)
	fmt.Println(m)
	ip := fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(250), rand.IntN(250), 1+rand.IntN(250))
	b := &bench{options: o, bits: 256, report: report{bars: o.services == 1000 && o.envoys == 16}}
	if b.consul, err = newConsul(ctx, o, dir, ip); err != nil {
		return err
	}
	defer b.stop()
	if err = b.consul.ready(ctx); err != nil {
		return err
	}
	b.catalog.consul = b.consul
	err = b.sections(ctx)
	return errors.Join(err, b.publish(m))
}

// publish writes what was measured to where it was asked for.
func (b *bench) publish(m machine) error {
	fmt.Printf("\n%s\n", b.options)
	if !b.report.bars {
		fmt.Println("The bars are for 1,000 services and 16 Envoys, and are left out.")
	}
	err := b.report.table(os.Stdout)
	if b.jsonTo != "" {
		err = errors.Join(err, b.report.save(b.jsonTo, m))
	}
	if b.markdownTo != "" {
		err = errors.Join(err, b.report.insert(b.markdownTo, m.String()+"\n"+b.String()))
	}
	return err
}

// sections measures one thing after the other. The catalog only grows.
func (b *bench) sections(ctx context.Context) error {
	if b.startOnly {
		if err := b.catalog.grow(ctx, b.services, 1); err != nil {
			return err
		}
		return b.repeat("Envoy's start", func() error { return b.envoyStart(ctx) })
	}
	if b.small > 0 {
		if err := b.growth(ctx, b.small); err != nil {
			return fmt.Errorf("growth: %w", err)
		}
	}
	if err := b.catalog.grow(ctx, b.services, max(b.envoys+1, b.crowdSize)); err != nil {
		return err
	}
	if b.envoys > 1 {
		if err := b.repeat("one Envoy", func() error { return b.round(ctx, 1, false) }); err != nil {
			return err
		}
	}
	if err := b.repeat("all Envoys", func() error { return b.round(ctx, b.envoys, true) }); err != nil {
		return err
	}
	if b.crowdSize > 0 {
		if err := b.repeat("crowd", func() error { return b.crowd(ctx) }); err != nil {
			return err
		}
	}
	if b.cold {
		if err := b.repeat("cold start", func() error { return b.coldStart(ctx) }); err != nil {
			return err
		}
	}
	if b.start {
		if err := b.envoyStart(ctx); err != nil {
			return fmt.Errorf("start of Envoy: %w", err)
		}
	}
	if b.small > 0 {
		if err := b.growth(ctx, b.large); err != nil {
			return fmt.Errorf("growth: %w", err)
		}
		b.compareGrowth(b.small, b.large)
	}
	return nil
}

// repeat measures something in rounds, and says how far it is.
func (b *bench) repeat(what string, f func() error) error {
	for i := range b.rounds {
		begin := time.Now()
		if err := f(); err != nil {
			return fmt.Errorf("%s, round %d: %w", what, i+1, err)
		}
		fmt.Fprintf(os.Stderr, "%s, %s services, round %d of %d: %v\n",
			what, thousands(len(b.catalog.ports)), i+1, b.rounds, time.Since(begin).Round(time.Millisecond))
	}
	return nil
}

// stop ends the parts; their state is thrown away.
func (b *bench) stop() {
	if b.usher != nil {
		b.usher.kill()
	}
	b.consul.kill()
}
