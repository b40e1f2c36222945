package latest

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestValueIsTheNewest(t *testing.T) {
	slot := New[int]()
	for i := range 100 {
		slot.Put(i)
	}
	if got := <-slot.C(); got != 99 {
		t.Errorf("took %d, want 99", got)
	}
	select {
	case v := <-slot.C():
		t.Errorf("the slot still holds %d", v)
	default:
	}
}

func TestValueNeverGoesBack(t *testing.T) {
	slot := New[int]()
	const last = 100_000
	go func() {
		for i := 1; i <= last; i++ {
			slot.Put(i)
		}
	}()
	for seen := 0; seen != last; {
		v := <-slot.C()
		if v <= seen {
			t.Fatalf("took %d after %d", v, seen)
		}
		seen = v
	}
}
