//go:build !linux

package demo

import "syscall"

// endWithParent has no way to end a child with its parent here.
func endWithParent() *syscall.SysProcAttr { return nil }
