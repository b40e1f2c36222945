// Package latest hands values from one goroutine to another where only the
// newest one counts.
package latest

// Value is a slot for the newest value. Put never blocks; a value that was not
// taken before the next Put is dropped. One goroutine puts; any number take.
// Use New.
type Value[T any] struct {
	c chan T
}

// New gives an empty box.
func New[T any]() Value[T] { return Value[T]{c: make(chan T, 1)} }

// Put replaces what is in the box. Calls must not overlap.
func (b Value[T]) Put(v T) {
	select {
	case <-b.c:
	default:
	}
	b.c <- v
}

// C delivers the newest value once it is there; each value goes to one taker.
func (b Value[T]) C() <-chan T { return b.c }
