// Package latest hands values from one goroutine to another where only the newest one counts.
package latest

// Value is a slot for the newest value. Any number of goroutines may take it. Use New.
type Value[T any] struct{ c chan T }

// New returns an empty slot.
func New[T any]() Value[T] { return Value[T]{c: make(chan T, 1)} }

// Put replaces the value in the slot. It never blocks, and drops a value that nothing has taken. Calls must not
// overlap.
func (l Value[T]) Put(v T) {
	select {
	case <-l.c:
	default:
	}
	l.c <- v
}

// C delivers the newest value once it is there; each value goes to one taker.
func (l Value[T]) C() <-chan T { return l.c }
