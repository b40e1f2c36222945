// Package adminport asks the admin ports of Ushers and Envoys over HTTP. Its errors say what does not answer and what to do,
// and have no user and password of a URL.
package adminport

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Server is what has an admin port, for messages.
type Server struct{ name, port string }

// The servers.
var (
	Usher = Server{"Usher", "the admin port of an Usher of this release"}
	Envoy = Server{"Envoy", "Envoy's admin interface"}
)

// Client asks one server. An answer is awaited until the context ends.
type Client struct {
	Limit int64 // how many bytes an answer may have; more are an error

	url    string
	server Server
}

// New returns a client of the admin port at an address, such as 127.0.0.1:19000, or at a URL. An address that is none is an
// error of each request. The limit is 256 MiB: a config dump of a large gateway has some MiB.
func New(address string, of Server) Client {
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	return Client{Limit: 256 << 20, url: strings.TrimSuffix(address, "/"), server: of}
}

// String returns the URL without its user and password.
func (c Client) String() string {
	u, err := url.Parse(c.url)
	if err != nil {
		return "an address that is none"
	}
	u.User = nil
	return u.String()
}

// Get returns the answer to a GET request. An answer other than 200 is a StatusError.
func (c Client) Get(ctx context.Context, path string) ([]byte, error) {
	var text bytes.Buffer
	err := c.Copy(ctx, path, &text)
	return text.Bytes(), err
}

// GetJSON decodes the answer to a GET request. An answer other than 200 is a StatusError.
func (c Client) GetJSON(ctx context.Context, path string, into any) error {
	text, err := c.Get(ctx, path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s answers what this Usher cannot read: %w; give the address of %s", c.page(path), err, c.server.port)
	}
	return nil
}

// Copy writes the answer to a GET request. An answer other than 200 and others is a StatusError. After another error, a part
// of the answer is written.
func (c Client) Copy(ctx context.Context, path string, to io.Writer, others ...int) error {
	return c.do(ctx, http.MethodGet, path, to, others)
}

// Post makes a POST request, which Envoy wants for what changes something. An answer other than 200 is a StatusError.
func (c Client) Post(ctx context.Context, path string) error {
	return c.do(ctx, http.MethodPost, path, io.Discard, nil)
}

func (c Client) do(ctx context.Context, method, path string, to io.Writer, others []int) error {
	began := time.Now()
	request, err := http.NewRequestWithContext(ctx, method, c.url+path, nil)
	if err != nil { // it may have a password
		return fmt.Errorf("the given address of %s is none; write host:port, or http://host:port", c.server.name)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return c.noAnswer(ctx, began, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK && !slices.Contains(others, response.StatusCode) {
		return &StatusError{Page: c.page(path), Status: response.Status, Line: firstLine(response), port: c.server.port}
	}
	n, err := io.Copy(to, io.LimitReader(response.Body, c.Limit+1))
	if err != nil {
		return fmt.Errorf("the answer of %s is not whole: %w", c.page(path), err)
	}
	if n > c.Limit {
		return fmt.Errorf("%s answers more than the %d bytes that Usher takes", c.page(path), c.Limit)
	}
	return nil
}

// page returns the URL of a path for messages.
func (c Client) page(path string) string {
	path, _, _ = strings.Cut(path, "?")
	return c.String() + path
}

// noAnswer says why a request has no answer. The error of the request has the URL.
func (c Client) noAnswer(ctx context.Context, began time.Time, err error) error {
	if deadline, ok := ctx.Deadline(); ok && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("no %s answers at %s within %v; start it, or correct the address", c.server.name, c, deadline.Sub(began).Round(100*time.Millisecond))
	}
	if of, ok := errors.AsType[*url.Error](err); ok {
		err = of.Err
	}
	if of, ok := errors.AsType[*net.OpError](err); ok && of.Op == "dial" {
		err = of.Err
	}
	return fmt.Errorf("no %s answers at %s: %w; start it, or correct the address", c.server.name, c, err)
}

// StatusError is an answer with another status than 200.
type StatusError struct {
	Page   string // its URL, without user, password and query
	Status string // such as "404 Not Found"
	Line   string // the first line of a text that says why; "" if there is none

	port string
}

// Error implements error.
func (e *StatusError) Error() string {
	if e.Line != "" {
		return fmt.Sprintf("%s answers %s: %s", e.Page, e.Status, e.Line)
	}
	return fmt.Sprintf("%s answers %s; give the address of %s", e.Page, e.Status, e.port)
}

// maxLine is how many bytes of an answer are in an error.
const maxLine = 512

// firstLine returns the first line of an answer that is plain text, unless it is that of Go's servers for a path that they
// do not have.
func firstLine(response *http.Response) string {
	if !strings.HasPrefix(response.Header.Get("Content-Type"), "text/plain") {
		return ""
	}
	text, _ := io.ReadAll(io.LimitReader(response.Body, maxLine)) // the status says enough
	line, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
	if line == "404 page not found" {
		return ""
	}
	return line
}
