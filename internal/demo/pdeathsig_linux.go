package demo

import "syscall"

// endWithParent has a child killed when this process dies without having
// ended it.
func endWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
