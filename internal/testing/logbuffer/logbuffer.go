// Package logbuffer is a log that a test reads while other goroutines write it.
package logbuffer

import (
	"bytes"
	"sync"
)

// Buffer is an io.Writer whose content can be read at any time, from any goroutine. The zero value is empty.
type Buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// String returns what was written.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
