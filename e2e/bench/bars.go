//go:build e2e

package main

// The bars that depend on the number of Envoys; the others stand where their
// rows are recorded. All are for 1,000 services.

// barsOfConsul are for the latency and the CPU of an endpoint change.
func (b *bench) barsOfConsul(envoys int) (latency, cpu []bar) {
	if envoys == 1 {
		return []bar{ofConsul(50)}, []bar{ofConsul(100)}
	}
	return []bar{ofConsul(300)}, []bar{ofConsul(500)}
}

// barsOverFloor are for the latency of an endpoint change.
func (b *bench) barsOverFloor(envoys int) []bar {
	if envoys == 1 {
		return []bar{timesFloor(2)}
	}
	return []bar{timesFloor(3)}
}

// barsOfMemory are for the resident memory.
func (b *bench) barsOfMemory(envoys int) []bar {
	if envoys == 1 {
		return nil
	}
	return []bar{ofConsul(4)}
}
