package latest

import "testing"

func TestBoxKeepsTheNewest(t *testing.T) {
	b := New[int]()
	for i := range 100 {
		b.Put(i)
	}
	if got := <-b.C(); got != 99 {
		t.Errorf("took %d, want 99", got)
	}
	select {
	case v := <-b.C():
		t.Errorf("the box still holds %d", v)
	default:
	}
}

func TestBoxNeverGoesBack(t *testing.T) {
	b := New[int]()
	const last = 100_000
	go func() {
		for i := 1; i <= last; i++ {
			b.Put(i)
		}
	}()
	for seen := 0; seen != last; {
		v := <-b.C()
		if v <= seen {
			t.Fatalf("took %d after %d", v, seen)
		}
		seen = v
	}
}
