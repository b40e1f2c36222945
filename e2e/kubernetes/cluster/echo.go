//go:build kubernetes

package cluster

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// httpEcho is the program of the image hashicorp/http-echo. It is in the test's
// binary.
const httpEcho = "http-echo"

// lastAnswers is how long serveEcho tells its clients that it closes their connections, before it does. A request that a
// client sends while its connection is closed is lost.
const lastAnswers = time.Second

// serveEcho answers every request with a text, and prints a line for each:
// path and X-Forwarded-For. It takes the flags of the original.
func serveEcho(args []string) int {
	flags := flag.NewFlagSet(httpEcho, flag.ContinueOnError)
	text := flags.String("text", "", "the answer")
	listen := flags.String("listen", ":5678", "the address")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	server := &http.Server{Addr: *listen, ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) {
			fmt.Printf("%s for=%s\n", r.URL.Path, strings.Join(r.Header.Values("X-Forwarded-For"), ","))
			if ctx.Err() != nil {
				w.Header().Set("Connection", "close")
			}
			fmt.Fprintln(w, *text)
		})}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	select {
	case err := <-ended:
		fmt.Fprintln(os.Stderr, err)
		return 1
	case <-ctx.Done():
		time.Sleep(lastAnswers)
		_ = server.Shutdown(context.Background()) // the kubelet ends a process that takes too long
		return 0
	}
}
