package retry

import (
	"math"
	"testing"
)

func TestPausesGrowToABound(t *testing.T) {
	bound := FirstPause
	for failures := 1; failures < 100; failures++ {
		for range 20 {
			if pause := Pause(failures); pause <= bound/2 || pause > bound {
				t.Fatalf("the pause after %d failures is %v, want more than %v and at most %v", failures, pause, bound/2, bound)
			}
		}
		bound = min(2*bound, LongestPause)
	}
	if pause := Pause(math.MaxInt); pause > LongestPause || pause < LongestPause/2 {
		t.Errorf("the pause after very many failures is %v", pause)
	}
}

func TestPausesDiffer(t *testing.T) {
	first := Pause(5)
	for range 100 {
		if Pause(5) != first {
			return
		}
	}
	t.Errorf("each pause is %v", first)
}
