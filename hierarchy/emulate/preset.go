package emulate

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
)

// Preset is a kind of line by name.
type Preset struct {
	Name   string
	Link   Link
	Help   string // one sentence
	Source string // where the figures come from
}

// Sources of several presets. Their latency is that of a round trip, and half of it
// the delay of one way.
const (
	webPageTest = "WebPageTest, www/settings/connectivity.ini.sample of 6a79fed, "
	chrome      = "Chrome DevTools, front_end/core/sdk/NetworkManager.ts of 00d120b, "
)

// presets are sorted by name.
var presets = [...]Preset{
	{
		"3g", Link{Down: 1600 * hierarchy.Kbit, Up: 768 * hierarchy.Kbit, Delay: 150 * time.Millisecond},
		"Mobile network of the third generation.",
		webPageTest + "[3G]: round trip 300 ms.",
	},
	{
		"4g", Link{Down: 9 * hierarchy.Mbit, Up: 1500 * hierarchy.Kbit, Delay: 30 * time.Millisecond},
		"Mobile network of the fourth generation, well received.",
		chrome + "Fast 4G: round trip 60 ms, without the factors by which a browser's requests are corrected.",
	},
	{
		"bad-wifi", Link{Down: 5 * hierarchy.Mbit, Up: 5 * hierarchy.Mbit, Delay: 40 * time.Millisecond, Jitter: 40 * time.Millisecond, Loss: percent(10)},
		"Wi-Fi from the far end of the house, or of a crowded hall.",
		"Half of the packets took more than 20 ms over the Wi-Fi, one in ten more than 100 ms: \"WiFi can be the weakest link of round trip network latency in the wild\", INFOCOM 2016. " +
			"The rate is what is left of 6 Mbit/s, the least of IEEE 802.11g. The loss, 1%, is chosen.",
	},
	{
		"cable", Link{Down: 5 * hierarchy.Mbit, Up: hierarchy.Mbit, Delay: 14 * time.Millisecond},
		"Television cable, a small contract.",
		webPageTest + "[Cable]: round trip 28 ms.",
	},
	{
		"dsl", Link{Down: 1500 * hierarchy.Kbit, Up: 384 * hierarchy.Kbit, Delay: 25 * time.Millisecond},
		"Telephone line, far from the exchange.",
		webPageTest + "[DSL]: round trip 50 ms.",
	},
	{
		"edge", Link{Down: 240 * hierarchy.Kbit, Up: 200 * hierarchy.Kbit, Delay: 420 * time.Millisecond},
		"Mobile network of the second generation, where there is no better.",
		webPageTest + "[Edge]: round trip 840 ms, 400 ms down and 440 ms up in Augmented Traffic Control, utils/profiles/Edge-Lossy.json, and Apple's Network Link Conditioner.",
	},
	{
		"lte", Link{Down: 12 * hierarchy.Mbit, Up: 12 * hierarchy.Mbit, Delay: 35 * time.Millisecond},
		"Mobile network of the fourth generation, as fast up as down.",
		webPageTest + "[LTE]: round trip 70 ms.",
	},
	{
		"satellite", Link{Down: 20 * hierarchy.Mbit, Up: 3 * hierarchy.Mbit, Delay: 300 * time.Millisecond},
		"Geostationary satellite.",
		"RFC 2488, section 2: 558 ms and more; \"A First Look at Starlink Performance\", IMC 2022: a round trip of 600 ms at least. " +
			"Down the medians of HughesNet (19.30 Mbit/s) and Viasat (18.75 Mbit/s), Ookla Q3 2021; up what is sold with that.",
	},
	{
		"slow-3g", Link{Down: 500 * hierarchy.Kbit, Up: 500 * hierarchy.Kbit, Delay: 200 * time.Millisecond},
		"Mobile network of the third generation, badly received or crowded.",
		chrome + "3G, once Slow 3G: round trip 400 ms, without the factors by which a browser's requests are corrected.",
	},
	{
		"slow-4g", Link{Down: 1600 * hierarchy.Kbit, Up: 750 * hierarchy.Kbit, Delay: 75 * time.Millisecond},
		"Mobile network of the fourth generation, badly received; what Lighthouse measures pages with.",
		chrome + "Slow 4G, Fast 3G until 2024: round trip 150 ms, as mobileSlow4G in Lighthouse, core/config/constants.js.",
	},
	{
		"starlink", Link{Down: 100 * hierarchy.Mbit, Up: 12 * hierarchy.Mbit, Delay: 20 * time.Millisecond, Jitter: 5 * time.Millisecond, Loss: percent(1)},
		"Satellites in low orbits.",
		"Medians in the US, Ookla Q4 2021: 104.97 and 12 Mbit/s, round trip 40 ms. " +
			"\"A First Look at Starlink Performance\", IMC 2022: half of the round trips within 10 ms of the median. " +
			"Single packets are lost without load, about one in a thousand: \"Analyzing Packet Loss in Starlink\", blog.wirelessmoves.com, July 2024.",
	},
	{
		"very-bad", Link{Down: hierarchy.Mbit, Up: hierarchy.Mbit, Delay: 500 * time.Millisecond, Loss: percent(100)},
		"A line on which little works: 10% of all packets are lost.",
		"Apple's Network Link Conditioner, Very Bad Network: 500 ms and 10% each way, as its users quote it; Apple publishes no figures.",
	},
}

// percent is a share in tenths of a percent.
func percent(tenths uint64) uint64 { return (tenths*hierarchy.Whole + 500) / 1000 }

// Presets are the lines that are known, sorted by name.
func Presets() []Preset { return slices.Clone(presets[:]) }

// Find is the preset of a name. The error for an unknown one names the nearest, and all.
func Find(name string) (Preset, error) {
	names := make([]string, len(presets))
	for i, p := range presets {
		if p.Name == name {
			return p, nil
		}
		names[i] = p.Name
	}
	return Preset{}, fmt.Errorf("there is no link %q: %s", name, suggest(name, names))
}

// Describe writes the presets as a table, and below it where each comes from.
func Describe(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "LINK\tDOWN\tUP\tDELAY\tJITTER\tLOSS\t")
	loss := hierarchy.Param{Type: hierarchy.Percent}
	for _, p := range presets {
		fmt.Fprintf(t, "%s\t%v\t%v\t%v\t%v\t%s\t%s\n", p.Name, p.Link.Down, p.Link.Up, p.Link.Delay, p.Link.Jitter, loss.Format(p.Link.Loss), p.Help)
	}
	fmt.Fprint(t, "\nDelay, jitter and loss are those of one way: a ping takes twice the delay.\n\nSources\n\n")
	for _, p := range presets {
		fmt.Fprintf(t, "%s\t%s\n", p.Name, p.Source)
	}
	return t.Flush()
}
