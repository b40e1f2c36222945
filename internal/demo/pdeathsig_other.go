//go:build !linux

package demo

import "syscall"

// killWithParent is for Linux only.
func killWithParent() *syscall.SysProcAttr { return nil }
