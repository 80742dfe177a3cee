package agent

import (
	"log/slog"
	"testing"
	"time"

	"github.com/vifshape/vifshape/tc"
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

// TestPaceChanges: what anybody can have the kernel tell of has an interface looked at at once, and
// later where that has taken much time lately: then at all of it.
func TestPaceChanges(t *testing.T) {
	for name, missed := range map[string]bool{"changed": false, "missed": true} {
		w := &watched{}
		a := &agent{
			log: slog.New(slog.DiscardHandler), interfaces: map[string]*watched{"eth0": w}, seen: map[int]seen{7: {traits: "eth0"}},
			dirty: map[string]bool{}, altered: map[string]bool{}, later: make(chan string), ended: make(chan struct{}),
		}
		all := []tc.Change{{Index: 7}}
		if missed {
			all = nil
		}
		a.changed(all)
		if a.altered["eth0"] == missed || a.dirty["eth0"] != missed || w.whether != missed || w.again != nil {
			t.Errorf("%s: it is not looked at at once", name)
		}
		clear(a.altered)
		clear(a.dirty)
		w.whether = false
		w.pace.looked(time.Now(), mostOwed+100*time.Millisecond)
		a.changed(all)
		if len(a.altered) > 0 || len(a.dirty) > 0 || !w.whether || w.again == nil {
			t.Errorf("%s: it is looked at at once, or not at all", name)
		}
		if got := <-a.later; got != "eth0" {
			t.Errorf("%s: %s is looked at later", name, got)
		}
	}
}
