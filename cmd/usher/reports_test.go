package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/usherproxy/usher/internal/evidence"
)

// TestWhereTheReportKeyComesFrom has every place that gives a key, and every one that gives none, which the log says.
func TestWhereTheReportKeyComesFrom(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fileKey := evidence.NewKey([]byte("0123456789abcdef"))
	for name, c := range map[string]struct {
		args             string
		token, tokenFile string
		want             evidence.Key
		logged           bool
	}{
		"nothing":              {want: evidence.NewKey([]byte("token "))},
		"a token":              {token: "sesame", want: evidence.NewKey([]byte("token sesame"))},
		"a token in a file":    {tokenFile: file, logged: true},
		"a login":              {args: "--login-auth-method=m", token: "sesame", logged: true},
		"config files":         {args: "--config-dir=d", want: evidence.NewKey([]byte("files"))},
		"a file":               {args: "--connection-report-key-file=" + file, token: "sesame", want: fileKey},
		"a file beside others": {args: "--login-auth-method=m --connection-report-key-file=" + file, tokenFile: file, want: fileKey},
		"switched off":         {args: "--connection-reports=false --login-auth-method=m"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("CONSUL_HTTP_TOKEN", c.token)
			t.Setenv("CONSUL_HTTP_TOKEN_FILE", c.tokenFile)
			var o serveOptions
			command := serveCommand()
			command.ResetFlags()
			o.register(command)
			if err := command.ParseFlags(strings.Fields(c.args)); err != nil {
				t.Fatal(err)
			}
			var log strings.Builder
			got, err := o.newReports(slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewRegistry(), nil, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got.key != c.want || (got.taker() != nil) == c.want.IsZero() || (got.shown() != nil) == c.want.IsZero() {
				t.Errorf("the key is another one, or reports are taken without one: %v, %v", got.key, got.taker())
			}
			const line = "set --connection-report-key-secret or --connection-report-key-file"
			if strings.Count(log.String(), line) != map[bool]int{true: 1}[c.logged] {
				t.Errorf("the log says: %s", log.String())
			}
		})
	}
}
