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

// listen binds an address of the form host:port or unix:///path. A socket that
// is left over from an earlier process is replaced; one that answers is not.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	path, isUnix := strings.CutPrefix(addr, "unix://")
	if !isUnix {
		return lc.Listen(ctx, "tcp", addr)
	}
	var d net.Dialer
	if c, err := d.DialContext(ctx, "unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("another process is listening on %s", path)
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
		return fmt.Errorf("%s exists and is not a socket", path)
	}
	return os.Remove(path)
}

// isLocal says whether only processes of this machine can reach addr. A host
// name is not looked up: anything but localhost counts as reachable.
func isLocal(addr string) bool {
	if strings.HasPrefix(addr, "unix://") {
		return true
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
