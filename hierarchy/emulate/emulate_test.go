package emulate_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/emulate"
)

const ms = time.Millisecond

// Every preset is a link, is found by its name, and says where it comes from.
func TestPresets(t *testing.T) {
	all := emulate.Presets()
	if !slices.IsSortedFunc(all, func(a, b emulate.Preset) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("they are not sorted by name")
	}
	var table strings.Builder
	if err := emulate.Describe(&table); err != nil {
		t.Fatal(err)
	}
	for i, p := range all {
		if i > 0 && p.Name == all[i-1].Name {
			t.Errorf("two are called %s", p.Name)
		}
		if got, err := emulate.Find(p.Name); err != nil || got != p {
			t.Errorf("%s: found %v, %v", p.Name, got, err)
		}
		if err := p.Link.Check(); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
		if p.Link.Up == 0 || p.Link.Down == 0 || p.Link.Delay == 0 {
			t.Errorf("%s has a figure missing: %+v", p.Name, p.Link)
		}
		if err := hierarchy.CheckName(p.Name); err != nil {
			t.Error(err)
		}
		for _, s := range []string{p.Help, p.Source} {
			if !strings.HasSuffix(s, ".") || !strings.Contains(table.String(), s) {
				t.Errorf("%s: %q is no sentence, or not in\n%s", p.Name, s, &table)
			}
		}
	}
	all[0].Name = "other"
	if emulate.Presets()[0].Name == "other" {
		t.Error("who asks can change them")
	}
	for _, name := range []string{"3g", "4g", "lte", "dsl", "cable", "edge", "satellite", "starlink", "bad-wifi", "very-bad", "slow-3g"} {
		if _, err := emulate.Find(name); err != nil {
			t.Error(err)
		}
	}
}

func TestFindUnknown(t *testing.T) {
	const known = "known are 3g, 4g, bad-wifi, cable, dsl, edge, lte, satellite, slow-3g, slow-4g, starlink, very-bad"
	for name, want := range map[string]string{
		"satelite": `there is no link "satelite": did you mean "satellite"? ` + known,
		"bad wifi": `there is no link "bad wifi": did you mean "bad-wifi"? ` + known,
		"pigeon":   `there is no link "pigeon": ` + known,
		"":         `there is no link "": ` + known,
	} {
		if _, err := emulate.Find(name); err == nil || err.Error() != want {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestSet(t *testing.T) {
	var l emulate.Link
	for _, x := range [][2]string{{"rate", "1mbit"}, {"down", "1.5mbit"}, {"delay", "100ms"}, {"jitter", "20ms"}, {"loss", "50%"}} {
		if err := l.Set(x[0], x[1]); err != nil {
			t.Error(err)
		}
	}
	want := emulate.Link{Up: hierarchy.Mbit, Down: 1500 * hierarchy.Kbit, Delay: 100 * ms, Jitter: 20 * ms, Loss: 1 << 31}
	if l != want {
		t.Errorf("%+v", l)
	}
	for _, tt := range [][3]string{
		{"delay", "100", `delay is a time: write delay = "5ms" (units ns, us, ms, s)`},
		{"delay", "-1ms", `delay "-1ms" is negative`},
		{"delay", "1h", `delay 1h0m0s is not between 0s and 10m0s`},
		{"jitter", "3s", `jitter 3s is not between 0s and 2s`},
		{"loss", "0.5", `"0.5" is not understood: a percentage needs its sign: write "0.5%"`},
		{"loss", "101%", `"101%" is more than 100%`},
		{"rate", "1mbps", `"1mbps" is not understood: "mbps" means bits to most people, and tc reads it as megabytes a second: write "1mbit" for bits or "1MB/s" (8mbit) for bytes a second`},
		{"rate", "1bit", `rate 1bit is not between 8bit and 100tbit`},
		{"delays", "1ms", `a link has no delays: did you mean "delay"? known are delay, jitter, loss, rate, up, down`},
	} {
		if err := l.Set(tt[0], tt[1]); err == nil || err.Error() != tt[2] {
			t.Errorf("%s %s: %v", tt[0], tt[1], err)
		}
	}
	if l != want {
		t.Errorf("what was refused is set: %+v", l)
	}
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		link emulate.Link
		want string
	}{
		{emulate.Link{}, "a link without a rate, a delay and a loss is none: give one of them"},
		{emulate.Link{Delay: 5 * ms, Jitter: 6 * ms}, "a jitter of 6ms takes more than the delay of 5ms: give a delay of 6ms or more"},
		{emulate.Link{Jitter: 6 * ms}, "a jitter of 6ms takes more than the delay of 0s: give a delay of 6ms or more"},
		{emulate.Link{Delay: 5 * ms, Jitter: 5 * ms}, ""},
		{emulate.Link{Loss: hierarchy.Whole}, ""},
		{emulate.Link{Down: 8}, ""},
	} {
		got := ""
		if err := tt.link.Check(); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%+v: %s", tt.link, got)
		}
	}
}

func TestLeaf(t *testing.T) {
	leaf := func(kind string, params ...string) *hierarchy.RawQdisc {
		q := &hierarchy.RawQdisc{Kind: kind}
		for i := 0; i < len(params); i += 2 {
			q.Params = append(q.Params, hierarchy.RawParam{Name: params[i], Text: params[i+1], Quoted: params[i] != "limit"})
		}
		return q
	}
	for _, tt := range []struct {
		name     string
		link     emulate.Link
		up, down *hierarchy.RawQdisc
	}{
		// 1 Mbit/s is 125,000 bytes a second: 48.8 of 256 in 100 ms, and 20.6 of 1,514 in
		// 250 ms, which are less than 64. Of 100 times that, 2,064.1.
		{"all", emulate.Link{Up: hierarchy.Mbit, Down: 100 * hierarchy.Mbit, Delay: 80 * ms, Jitter: 20 * ms, Loss: 1 << 31},
			leaf("netem", "limit", "113", "delay", "80ms", "jitter", "20ms", "rate", "100tbit", "loss", "50%"),
			leaf("netem", "limit", "6948", "delay", "80ms", "jitter", "20ms", "rate", "100tbit", "loss", "50%")},
		{"a delay alone is everybody's", emulate.Link{Delay: 80 * ms}, leaf("netem", "delay", "80ms"), leaf("netem", "delay", "80ms")},
		{"a loss alone", emulate.Link{Loss: hierarchy.Whole}, leaf("netem", "loss", "100%"), leaf("netem", "loss", "100%")},
		{"a rate alone takes no netem", emulate.Link{Up: hierarchy.Mbit}, leaf("pfifo", "limit", "64"), nil},
		{"the most", emulate.Link{Up: hierarchy.MaxBandwidth, Delay: 10 * time.Minute}, leaf("netem", "limit", "4294967295", "delay", "10m0s"), leaf("netem", "delay", "10m0s")},
		{"none", emulate.Link{}, nil, nil},
	} {
		for d, want := range map[hierarchy.Direction]*hierarchy.RawQdisc{hierarchy.Send: tt.up, hierarchy.Receive: tt.down} {
			if diff := cmp.Diff(want, tt.link.Leaf(d)); diff != "" {
				t.Errorf("%s, %v (-want +got)\n%s", tt.name, d, diff)
			}
		}
	}
}
