package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/usherproxy/usher/internal/adminport"
	"github.com/usherproxy/usher/internal/redaction"
	"github.com/usherproxy/usher/internal/status"
)

// The exit statuses of usher status. The worst counts.
const (
	statusProblem = 1 // a problem is more than a notice
	statusUnknown = 2 // an Usher does not answer
)

// statusOptions are the flags of usher status.
type statusOptions struct {
	addrs   []string
	output  string
	watch   bool
	timeout time.Duration

	interval time.Duration // between two outputs of --watch
}

func statusCommand() *cobra.Command {
	o := statusOptions{interval: 2 * time.Second}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Print what Ushers know: gateways, listeners, Envoys and problems.",
		Long: `Status asks Ushers on their admin ports, and prints

  - a line for each Usher: whether it is ready, and whether its source answers;
  - a row for each listener: the mode that is asked for, the one in force, and
    why they differ;
  - a row for each connected Envoy: whether it has accepted what Usher has for
    it, or since when it has not answered or refuses it;
  - the problems, the worst first, and what to do about each.

Exit status:
  0  There is no problem that is more than a notice.
  1  There is one.
  2  An Usher does not answer.`,
		Example: "  usher status\n" +
			"  usher status --admin-addr 10.0.0.1:18001 --admin-addr 10.0.0.2:18001 -o wide\n" +
			"  usher status --watch",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return o.run(ctx, cmd.OutOrStdout())
		},
		Annotations: map[string]string{troubleStatus: fmt.Sprint(statusUnknown)},
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.addrs, "admin-addr", []string{"127.0.0.1:18001"}, "Admin address of an Usher; once for each replica.")
	f.StringVarP(&o.output, "output", "o", "table", "Format: table, wide, json or yaml.")
	f.BoolVar(&o.watch, "watch", false, "Print again every two seconds, until you interrupt it.")
	f.DurationVar(&o.timeout, "timeout", 5*time.Second, "How long to wait for each answer.")
	return cmd
}

// statusPrinters write the answers in a format.
var statusPrinters = map[string]func(io.Writer, []status.Answer) error{
	"table": func(w io.Writer, answers []status.Answer) error { return status.Text(w, answers, false) },
	"wide":  func(w io.Writer, answers []status.Answer) error { return status.Text(w, answers, true) },
	"json": func(w io.Writer, answers []status.Answer) error {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(answers)
	},
	"yaml": func(w io.Writer, answers []status.Answer) error {
		text, err := yaml.Marshal(answers)
		if err != nil {
			return err
		}
		_, err = w.Write(append([]byte("---\n"), text...))
		return err
	},
}

// run prints the status, with --watch until ctx ends.
func (o *statusOptions) run(ctx context.Context, out io.Writer) error {
	print, ok := statusPrinters[o.output]
	if !ok {
		return fmt.Errorf("--output %q is unknown; use table, wide, json or yaml", o.output)
	}
	if o.timeout <= 0 {
		return fmt.Errorf("--timeout %v: it must be more than 0s; use a duration such as 5s", o.timeout)
	}
	for {
		answers := o.ask(ctx)
		if o.watch && ctx.Err() != nil {
			return nil
		}
		if o.watch && isTerminal(out) {
			fmt.Fprint(out, "\x1b[H\x1b[2J") // to the top of an empty screen
		}
		if err := print(out, answers); err != nil {
			return err
		}
		if !o.watch {
			return resultOf(answers)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(o.interval):
		}
	}
}

// ask asks all Ushers at the same time.
func (o *statusOptions) ask(ctx context.Context) []status.Answer {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	answers := make([]status.Answer, len(o.addrs))
	var asking sync.WaitGroup
	for i, addr := range o.addrs {
		asking.Go(func() {
			var state status.State
			answers[i] = status.Answer{Address: redaction.Text(addr), State: &state}
			if err := adminport.New(addr, adminport.Usher).GetJSON(ctx, status.Path, &state); err != nil {
				answers[i].State, answers[i].Error = nil, err.Error()
			}
		})
	}
	asking.Wait()
	return answers
}

// resultOf returns the exit status.
func resultOf(answers []status.Answer) error {
	switch {
	case slices.ContainsFunc(answers, func(a status.Answer) bool { return a.State == nil }):
		return exitError{status: statusUnknown}
	case slices.ContainsFunc(answers, func(a status.Answer) bool { return a.State.Failed() }):
		return exitError{status: statusProblem}
	}
	return nil
}

// isTerminal reports whether people read the output on a screen.
func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
