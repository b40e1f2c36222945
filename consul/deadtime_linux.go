package consul

import (
	"time"

	"golang.org/x/sys/unix"
)

// setDeadTime sets after how long the kernel ends a connection whose data is not acknowledged: TCP_USER_TIMEOUT, in milliseconds.
func setDeadTime(fd int, d time.Duration) error {
	return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
}
