package demo

import "syscall"

// killWithParent makes the kernel kill a child when this process dies before it.
func killWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
