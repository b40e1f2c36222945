package consul

import (
	"time"

	"golang.org/x/sys/unix"
)

// setDeadTime sets after how long the kernel ends a connection whose data is not acknowledged: TCP_RXT_CONNDROPTIME, in seconds.
func setDeadTime(fd int, d time.Duration) error {
	return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_RXT_CONNDROPTIME, int(d.Seconds()))
}
