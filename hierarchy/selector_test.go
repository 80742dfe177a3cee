package hierarchy

import "testing"

// TestFit: what a selector fits, and which of several has it.
func TestFit(t *testing.T) {
	wlan := Identity{Name: "wlp2s0", AltNames: []string{"wlx525400123456"}, MAC: "52:54:00:12:34:56", Uplink: true}
	order := []Selector{"wlp2s0", "wlx525400123456", "mac=52:54:00:12:34:56", DefaultRoute, "wlp2*", "wl*"}
	for i, s := range order {
		if f := s.Fit(wlan); f == 0 || i > 0 && f >= order[i-1].Fit(wlan) {
			t.Errorf("%s fits by %d", s, f)
		}
	}
	if s := Selector("mac=52:54:00:AB:CD:EF"); s.Fit(Identity{Name: "x", MAC: "52:54:00:ab:cd:ef"}) != FitMAC {
		t.Error("the case of a hardware address matters")
	}
	for _, s := range []Selector{"wlp2s", "wlp2s00", "mac=52:54:00:12:34:57", "eth*", "wlp?s", "mac=", "m*"} {
		if f := s.Fit(wlan); f != 0 {
			t.Errorf("%s fits by %d", s, f)
		}
	}
	if DefaultRoute.Plain() || DefaultRoute.Fit(Identity{Name: "default-route"}) != 0 || DefaultRoute.Fit(Identity{Name: "lo", Uplink: true}) != 0 {
		t.Error("an interface is that of the default route by its name, or as the loopback interface")
	}
	for s, want := range map[Selector]Fit{"*": 0, "lo": FitName, "l?": 0, "mac=": 0} {
		if got := s.Fit(Identity{Name: "lo"}); got != want {
			t.Errorf("lo: %s fits by %d", s, got)
		}
	}
}
