package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/usherproxy/usher/internal/problem"
)

// noArguments refuses arguments, and says how to name a gateway.
func noArguments(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case cmd.Flags().Lookup("gateway") != nil:
		return fmt.Errorf("%s takes no argument %q; name the gateway with --gateway %s", cmd.CommandPath(), args[0], args[0])
	}
	return fmt.Errorf("%s takes no argument %q; see %[1]s --help", cmd.CommandPath(), args[0])
}

// execute runs a command of root.
func execute(ctx context.Context, root *cobra.Command, args []string) (*cobra.Command, error) {
	if cmd, rest, err := root.Find(args); err == nil {
		if err := oneDash(cmd, rest); err != nil {
			return cmd, cmd.FlagErrorFunc()(cmd, err)
		}
	}
	root.SetArgs(args)
	return root.ExecuteContextC(ctx)
}

// oneDash returns an error if a flag has one dash, as Consul's have. A parser takes its letters for flags and their
// values: -output x would be --output utput.
func oneDash(cmd *cobra.Command, args []string) error {
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	flags := cmd.Flags()
	for _, arg := range withoutValues(flags, args) {
		name, _, _ := strings.Cut(strings.TrimPrefix(arg, "-"), "=")
		if strings.HasPrefix(arg, "-") && len(name) > 1 && flags.Lookup(name) != nil {
			return fmt.Errorf("unknown flag: -%s; flags have two dashes: --%[1]s", name)
		}
	}
	return nil
}

// withoutValues returns the arguments with their indices, up to "--", without those that are the value of the flag
// before them.
func withoutValues(flags *pflag.FlagSet, args []string) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		for i := 0; i < len(args) && args[i] != "--" && yield(i, args[i]); i++ {
			if takesNext(flags, args[i]) {
				i++
			}
		}
	}
}

// logsJSON reports whether --log-format is json. Parsing may have ended with an error before that flag.
func logsJSON(cmd *cobra.Command, args []string) bool {
	format := ""
	for i, arg := range withoutValues(cmd.Flags(), args) {
		name, value, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		switch {
		case name != "log-format" || name == arg:
		case hasValue:
			format = value
		case i+1 < len(args):
			format = args[i+1]
		}
	}
	return format == "json" && cmd.Flags().Lookup("log-format") != nil
}

// takesNext reports whether the flag in arg has its value in the next argument.
func takesNext(flags *pflag.FlagSet, arg string) bool {
	var f *pflag.Flag
	if name, isLong := strings.CutPrefix(arg, "--"); isLong {
		f = flags.Lookup(name)
	} else if letter, isFlag := strings.CutPrefix(arg, "-"); isFlag && len(letter) == 1 {
		f = flags.ShorthandLookup(letter)
	}
	return f != nil && f.NoOptDefVal == ""
}

// flagError explains an error in the flags.
func flagError(cmd *cobra.Command, err error) error {
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok {
		return err
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	name, _, _ := strings.Cut(unknown.GetSpecifiedName(), "=")
	return fmt.Errorf("%w%s; see %s --help", err, problem.DidYouMean(name, names), cmd.CommandPath())
}
