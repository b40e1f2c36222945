package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/usherproxy/usher/internal/configdir"
	"github.com/usherproxy/usher/internal/configfile"
	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

func validateCommand() *cobra.Command {
	var v validation
	var format string
	cmd := &cobra.Command{
		Use:   "validate FILE|DIRECTORY…",
		Short: "Check files before Usher reads them, for CI.",
		Long: "Validate reads files as usher serve does, and prints each problem with its file, line and column:\n\n" +
			"  file with usher and gateway blocks      as --config\n" +
			"  file with config entries or services    as one of the files in --config-dir\n" +
			"  directory                               as --config-dir, with the settings in the files above\n\n" +
			"For a directory it also compiles what each gateway would get. Rules that concern several files count in\n" +
			"directories only. What may be meant is a notice. The exit status is 1 if there is a problem that is none, else 0.",
		Example: "  usher validate /etc/usher/usher.hcl\n  usher validate -o json gateway/ usher.hcl",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, paths []string) error {
			print, err := printerOf(format)
			if err != nil {
				return err
			}
			if err := v.run(cmd.Context(), paths); err != nil {
				return err
			}
			if err := print(cmd.OutOrStdout(), len(paths), v.problems); err != nil || !v.failed() {
				return err
			}
			return errBadResult
		},
	}
	cmd.Flags().StringVarP(&format, "output", "o", "text", "Format of the problems: text or json.")
	cmd.Flags().BoolVar(&v.consul, "consul", false, "The entries and services are for a Consul: check only Usher's settings in them. Consul checks the rest.")
	cmd.Flags().Var(&v.envoy, "envoy-version", envoyVersionHelp)
	return cmd
}

// validation collects problems.
type validation struct {
	envoy    envoyVersion
	consul   bool
	problems []problem.Problem
}

// run checks the paths. Its error says why it could not.
func (v *validation) run(ctx context.Context, paths []string) error {
	var dirs []string
	var files []settings.File // the contents of config files
	for _, path := range paths {
		info, err := os.Stat(path)
		switch {
		case err != nil:
			return err
		case info.IsDir() && v.consul:
			v.add(configdir.CheckSettingsIn(path))
		case info.IsDir():
			dirs = append(dirs, path)
		case configfile.IsSettings(path):
			f, err := configfile.Open(path, slog.New(slog.DiscardHandler))
			if f == nil {
				return err
			}
			v.add(f.Content().Problems)
			files = append(files, f.Content())
		case v.consul:
			v.add(configdir.CheckSettings(path))
		default:
			v.add(configdir.CheckFile(path))
		}
	}
	if len(files) == 0 {
		files = []settings.File{{}}
	}
	if err := v.dirs(ctx, dirs, files); err != nil {
		return err
	}
	slices.SortStableFunc(v.problems, func(a, b problem.Problem) int {
		return cmp.Or(cmp.Compare(a.At.File, b.At.File), cmp.Compare(a.At.Line, b.At.Line), cmp.Compare(a.At.Column, b.At.Column))
	})
	return nil
}

// dirs checks directories together with each of the config files. A block of a gateway needs one in any of the directories.
func (v *validation) dirs(ctx context.Context, dirs []string, files []settings.File) error {
	var names []string
	known := len(dirs) > 0
	for _, dir := range dirs {
		source := configdir.NewSource(dir, configdir.Options{})
		if bad, ok := errors.AsType[configdir.Problems](source.Load()); ok {
			v.add(bad)
			known = false
			continue
		}
		for _, id := range source.Gateways() {
			names = append(names, id.Name)
		}
		for _, file := range files {
			if err := v.compile(ctx, source, file); err != nil {
				return err
			}
		}
	}
	if known {
		slices.Sort(names)
		names = slices.Compact(names)
		for _, file := range files {
			v.add(controlplane.UnknownGateways(file, names))
		}
	}
	return nil
}

// compile checks what each gateway of a source would get with a config file.
func (v *validation) compile(ctx context.Context, source *configdir.Source, file settings.File) error {
	ids, missing := source.Gateways(), map[gateway.ID]bool{}
	for _, id := range ids {
		missing[id] = true
	}
	if len(ids) == 0 {
		return nil
	}
	p := previewer{source: source, file: file, envoy: gateway.EnvoyVersion(v.envoy)}
	return p.run(ctx, ids, func(next controlplane.Preview) bool {
		if next.Snapshot != nil {
			v.add(next.Problems)
			delete(missing, next.Gateway)
		}
		return len(missing) == 0
	})
}

// failed reports whether a problem is worse than a notice.
func (v *validation) failed() bool {
	return slices.ContainsFunc(v.problems, func(p problem.Problem) bool { return p.Severity > problem.Notice })
}

// add adds problems that are not known yet.
func (v *validation) add(problems []problem.Problem) {
	for _, p := range problems {
		if !slices.Contains(v.problems, p) {
			v.problems = append(v.problems, p)
		}
	}
}

// printerOf returns the function that prints problems in a format.
func printerOf(format string) (func(w io.Writer, paths int, problems []problem.Problem) error, error) {
	switch format {
	case "text":
		return printProblems, nil
	case "json":
		return func(w io.Writer, _ int, problems []problem.Problem) error { return printProblemsJSON(w, problems) }, nil
	}
	return nil, fmt.Errorf("--output %q is unknown; use text or json", format)
}

// printProblems prints a line for each problem, as compilers do, with the word "notice" in it if it is one.
func printProblems(w io.Writer, paths int, problems []problem.Problem) error {
	for _, p := range problems {
		place := p.At.String()
		if p.At.Column > 0 {
			place = fmt.Sprintf("%s:%d", place, p.At.Column)
		}
		if p.Severity == problem.Notice {
			p.What = "notice: " + p.What
		}
		if _, err := fmt.Fprintln(w, strings.Replace(p.String(), p.At.String(), place, 1)); err != nil {
			return err
		}
	}
	if len(problems) > 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "%d checked, no problems\n", paths)
	return err
}

// reportedProblem is a problem in JSON. What is not known is left out.
type reportedProblem struct {
	File     string           `json:"file,omitempty"`
	Line     int              `json:"line,omitempty"`
	Column   int              `json:"column,omitempty"`
	Key      string           `json:"key,omitempty"` // or what else says where it is
	Message  string           `json:"message"`
	Severity problem.Severity `json:"severity"`
}

func printProblemsJSON(w io.Writer, problems []problem.Problem) error {
	list := []reportedProblem{}
	for _, p := range problems {
		key := strings.TrimPrefix(strings.TrimPrefix(p.Where, p.At.String()), ": ")
		list = append(list, reportedProblem{File: p.At.File, Line: p.At.Line, Column: p.At.Column, Key: key, Message: p.What, Severity: p.Severity})
	}
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(list)
}

// envoyVersion is a flag with a release of Envoy.
type envoyVersion gateway.EnvoyVersion

const envoyVersionHelp = "Release of the Envoys, such as 1.34.2: an old one gets no fields that it does not know. Default: the newest."

// Set implements pflag.Value.
func (v *envoyVersion) Set(text string) error {
	var next gateway.EnvoyVersion
	text = strings.TrimPrefix(text, "v")
	if n, _ := fmt.Sscanf(text, "%d.%d.%d", &next.Major, &next.Minor, &next.Patch); n < 2 {
		return errors.New("use a release such as 1.34.2")
	}
	*v = envoyVersion(next)
	return nil
}

// String implements pflag.Value.
func (v *envoyVersion) String() string {
	if *v == (envoyVersion{}) {
		return ""
	}
	return gateway.EnvoyVersion(*v).String()
}

// Type implements pflag.Value.
func (v *envoyVersion) Type() string { return "RELEASE" }
