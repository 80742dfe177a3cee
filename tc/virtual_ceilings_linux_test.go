package tc_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
)

// A ceiling holds over any tenth of a second, also when a branch wakes up and whatever
// it has beside it: what leaves it is a tenth more at most, and one of the largest
// packets. Of an inner branch it is one for each leaf below it that wakes up.
func TestVirtualCeilings(t *testing.T) {
	if !virtualTime() {
		return // TestVMVirtualTime runs it
	}
	const (
		window  = 100 * time.Millisecond
		look    = 10 * time.Millisecond
		largest = 46 * 1514 // 64 KiB in parts, each with its headers
	)
	fmt.Printf("%-38s %-6s %9s  %10s %10s\n", "what wakes up", "sender", "ceil", "beyond it", "bound")
	for _, row := range []struct {
		name, text string
		branch     hierarchy.Path
	}{
		{"a cap beside 16kbit", "940mbit\n  a 100mbit ceil=100mbit D\n  b 16kbit\n", "a"},
		{"a cap beside 64kbit", "940mbit\n  a 500mbit ceil=500mbit D\n  b 64kbit\n", "a"},
		{"a cap above its rate, beside 16kbit", "940mbit\n  a 20mbit ceil=100mbit D\n  b 16kbit\n", "a"},
		{"a low cap above its rate", "100mbit\n  a 1mbit ceil=5mbit D\n  b 50kbit\n", "a"},
		{"a slow cap", "10mbit\n  a 100kbit ceil=150kbit D\n  b 50%\n", "a"},
		{"a leaf of a capped branch", "940mbit\n  a 50mbit ceil=100mbit\n    x 1mbit D\n    y 16kbit\n  b 16kbit\n", "a"},
		{"the line", "100mbit\n  a 1mbit D\n  b 16kbit\n", ""},
		{"the line, all of it", "100mbit\n  rest 100% D\n", ""},
		{"all of the line at once", "100mbit\n  a 30% D\n  b 30% D\n  c 16kbit\n  rest 30% D\n", ""},
	} {
		for _, word := range []string{"tcp/4", "udp"} {
			f := newField(t)
			tree, _ := f.phase(all("", row.text), time.Second, 0, 1)
			path := hierarchy.Path(f.Name)
			if row.branch != "" {
				path = path.Join(string(row.branch))
			}
			class := tree.Find(path).Class
			_, senders := plot(t, f.Name, all(word, row.text))
			for _, s := range senders {
				rate := hierarchy.Bandwidth(0)
				if s.protocol == "udp" {
					rate = 2 * tree.Find(s.path).Ceil
				}
				f.start(tree, s, string(s.path), rate)
			}
			type sample struct {
				at   time.Time
				sent uint64
			}
			var seen []sample
			most := 0.0 // what was sent beyond what the ceiling carries in the same time
			for start := time.Now(); time.Since(start) < 2*time.Second; time.Sleep(look) {
				stats, err := f.Stats()
				if err != nil {
					t.Fatal(err)
				}
				for _, s := range stats {
					if s.Class == class.ID {
						seen = append(seen, sample{time.Now(), s.Bytes})
					}
				}
				now := seen[len(seen)-1]
				for _, s := range seen {
					if d := now.at.Sub(s.at); d <= window {
						most = max(most, float64(now.sent-s.sent)-float64(class.Ceil)/8*d.Seconds())
					}
				}
			}
			bound := float64(class.Ceil)/8*window.Seconds()/10 + float64(len(senders)*largest)
			fmt.Printf("%-38s %-6s %9v  %10.0f %10.0f\n", row.name, word, class.Ceil, most, bound)
			if most > bound {
				t.Errorf("%s, %s: %.0f bytes beyond the ceiling, more than %.0f", row.name, word, most, bound)
			}
			f.close()
		}
	}
}
