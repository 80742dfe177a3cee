package agent

import (
	"testing"
	"time"
)

// TestPace: single looks are at once, a burst of them too, and looks without end take half of the
// time, however long each takes.
func TestPace(t *testing.T) {
	for _, took := range []time.Duration{time.Millisecond, 40 * time.Millisecond, 2 * time.Second} {
		var p pace
		begun := time.Now()
		now := begun
		atOnce, looks := 0, 0
		var looking time.Duration
		for now.Sub(begun) < time.Minute {
			wait := p.wait(now)
			if wait == 0 && atOnce == looks {
				atOnce++
			}
			looks++
			looking += took
			now = now.Add(wait + took)
			p.looked(now, took)
		}
		if share := looking.Seconds() / now.Sub(begun).Seconds(); share > 0.6 || share < 0.4 && took > leastLook {
			t.Errorf("looks of %v take %.2f of the time", took, share)
		}
		if atOnce < 1 || took <= leastLook && atOnce < 10 {
			t.Errorf("of looks of %v only the first %d are at once", took, atOnce)
		}
		if now = now.Add(time.Minute); p.wait(now) != 0 {
			t.Errorf("after a minute's rest one waits %v", p.wait(now))
		}
	}
}
