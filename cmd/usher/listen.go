package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
)

// listen binds an address of the form host:port or unix:///path. It replaces a socket that an earlier process left
// behind, but not one that answers.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	path, isUnix := strings.CutPrefix(addr, "unix://")
	if !isUnix {
		return lc.Listen(ctx, "tcp", addr)
	}
	var d net.Dialer
	if c, err := d.DialContext(ctx, "unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("another process is listening on %s; stop it, or use another path", path)
	}
	if err := removeSocket(path); err != nil {
		return nil, err
	}
	return lc.Listen(ctx, "unix", path)
}

// removeSocket removes a socket at path, and nothing that is not a socket.
func removeSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s exists and is not a socket; remove it, or use another path", path)
	}
	return os.Remove(path)
}

// isLocal reports whether only processes on this machine can reach addr. It does not look up host names: any other
// than localhost counts as reachable.
func isLocal(addr string) bool {
	if strings.HasPrefix(addr, "unix://") {
		return true
	}
	host, _, _ := net.SplitHostPort(addr) // "" without a port
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}
