package hierarchy_test

import (
	"math"
	"math/big"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// read is one row for a reader: text, and either a value or the error's words.
type read[T any] struct {
	in   string
	want T
	err  string
}

func check[T comparable](t *testing.T, parse func(string) (T, error), rows []read[T]) {
	t.Helper()
	for _, r := range rows {
		t.Run(r.in, func(t *testing.T) {
			got, err := parse(r.in)
			text := ""
			if err != nil {
				text = err.Error()
			}
			if d := cmp.Diff(r.err, text); d != "" {
				t.Errorf("error (-want +got):\n%s", d)
			}
			if got != r.want {
				t.Errorf("got %v, want %v", got, r.want)
			}
		})
	}
}

func TestParseBandwidth(t *testing.T) {
	both := func(in, u, bits, bytes, is string) string {
		return `"` + in + `" is not understood: "` + u + `" may mean bits or bytes: write "` + bits + `" for bits or "` + bytes + `" (` + is + `) for bytes a second`
	}
	small := func(in, u, bits, bytes, is string) string {
		return `"` + in + `" is not understood: a small b in "` + u + `" may mean bits or bytes: write "` + bits + `" for bits or "` + bytes + `" (` + is + `) for bytes a second`
	}
	bps := func(in, u, bits, bytes, is string) string {
		return `"` + in + `" is not understood: "` + u + `" means bits to most people, and tc reads it as ` + map[string]string{"10mbps": "mega", "10Kbps": "kilo"}[in] + `bytes a second: write "` + bits + `" for bits or "` + bytes + `" (` + is + `) for bytes a second`
	}
	units := func(in string) string {
		return `"` + in + `" is not understood: units are bit, kbit, mbit, gbit, tbit (bits a second) and B/s, kB/s, MB/s, MiB/s, GB/s ... (bytes a second)`
	}
	check(t, ParseBandwidth, []read[Bandwidth]{
		{in: "1bit", want: 1},
		{in: "8bit", want: 8},
		{in: "10kbit", want: 10_000},
		{in: "10mbit", want: 10_000_000},
		{in: "10 mbit", want: 10_000_000},
		{in: "  10mbit ", want: 10_000_000},
		{in: "010mbit", want: 10_000_000},
		{in: "1.5gbit", want: 1_500_000_000},
		{in: "0.001kbit", want: 1},
		{in: "1.000mbit", want: 1_000_000},
		{in: "2tbit", want: 2_000_000_000_000},
		{in: "100tbit", want: MaxBandwidth},
		{in: "1B/s", want: 8},
		{in: "0.5B/s", want: 4},
		{in: "5kB/s", want: 40_000},
		{in: "5MB/s", want: 40_000_000},
		{in: "5GB/s", want: 40_000_000_000},
		{in: "5TB/s", want: 40_000_000_000_000},
		{in: "5KiB/s", want: 5 << 13},
		{in: "5MiB/s", want: 5 << 23},
		{in: "5GiB/s", want: 5 << 33},
		{in: "5TiB/s", want: 5 << 43},

		{in: "", err: `"" is empty: a bandwidth needs a unit: write "10mbit" for megabits or "10MB/s" for megabytes a second; tc reads a bare number as bits`},
		{in: "9999", err: `"9999" is not understood: a bandwidth needs a unit: write "9999mbit" for megabits or "9999MB/s" for megabytes a second; tc reads a bare number as bits`},
		{in: "10000", err: `"10000" is not understood: a bandwidth needs a unit: write "10000bit" for bits, as tc reads it, or "10000B/s" for bytes a second`},
		{in: "10", err: `"10" is not understood: a bandwidth needs a unit: write "10mbit" for megabits or "10MB/s" for megabytes a second; tc reads a bare number as bits`},
		{in: "10mbps", err: bps("10mbps", "mbps", "10mbit", "10MB/s", "80mbit")},
		{in: "10Kbps", err: bps("10Kbps", "Kbps", "10kbit", "10kB/s", "80kbit")},
		{in: "10bps", err: bps("10bps", "bps", "10bit", "10B/s", "80bit")},
		{in: "5M", err: both("5M", "M", "5mbit", "5MB/s", "40mbit")},
		{in: "5k", err: both("5k", "k", "5kbit", "5kB/s", "40kbit")},
		{in: "5b", err: small("5b", "b", "5bit", "5B/s", "40bit")},
		{in: "5Mb", err: small("5Mb", "Mb", "5mbit", "5MB/s", "40mbit")},
		{in: "5Mb/s", err: small("5Mb/s", "Mb/s", "5mbit", "5MB/s", "40mbit")},
		{in: "5gb", err: small("5gb", "gb", "5gbit", "5GB/s", "40gbit")},
		{in: "5MB", err: `"5MB" is not understood: "MB" means bytes to most people: write "5MB/s" (40mbit) for bytes a second or "5mbit" for bits`},
		{in: "5mB/s", err: `"5mB/s" is not understood: write "5MB/s"`},
		{in: "5MiB", err: `"5MiB" is not understood: "MiB" means bytes to most people: write "5MiB/s" for bytes a second or "5242880bit" for bits`},
		{in: "5B", err: `"5B" is not understood: "B" means bytes to most people: write "5B/s" (40bit) for bytes a second or "5bit" for bits`},
		{in: "10Mbit", want: 10 * Mbit}, // as tc prints them
		{in: "512Kbit", want: 512 * Kbit},
		{in: "1.5Gbit", want: 1500 * Mbit},
		{in: "2Tbit", want: 2 * Tbit},
		{in: "10MBit", err: `"10MBit" is not understood: write "10mbit"`},
		{in: "10MBps", err: `"10MBps" is not understood: "MBps" means bytes to most people: write "10MB/s" (80mbit) for bytes a second or "10mbit" for bits`},
		{in: "10kBps", err: `"10kBps" is not understood: "kBps" means bytes to most people: write "10kB/s" (80kbit) for bytes a second or "10kbit" for bits`},
		{in: "10Bps", err: `"10Bps" is not understood: "Bps" means bytes to most people: write "10B/s" (80bit) for bytes a second or "10bit" for bits`},
		{in: "0", err: `"0" is no bandwidth; the kernel cannot shape to nothing, the least is "8bit"`},
		{in: "10MBIT", err: `"10MBIT" is not understood: write "10mbit"`},
		{in: "10Mbit/s", err: `"10Mbit/s" is not understood: write "10mbit"`},
		{in: "10mbits", err: `"10mbits" is not understood: write "10mbit"`},
		{in: "10Mbits/s", err: `"10Mbits/s" is not understood: write "10mbit"`},
		{in: "1,5gbit", err: `"1,5gbit" is not understood: write the fraction behind a point: "1.5gbit"`},
		{in: "1,000mbit", err: `"1,000mbit" is not understood: write "1000mbit" for thousands, or "1.000mbit" for a fraction`},
		{in: "1,5M", err: `"1,5M" is not understood: write the fraction behind a point, as in 1.5gbit`},
		{in: "1,mbit", err: `"1,mbit" is not understood: write the fraction behind a point, as in 1.5gbit`},
		{in: "100Mi", err: `"100Mi" is not understood: "Mi" may mean bits or bytes: write "104857600bit" for bits or "100MiB/s" for bytes a second`},
		{in: "5mibps", err: `"5mibps" is not understood: "mibps" means bits to most people, and tc reads it as megabytes a second: write "5242880bit" for bits or "5MiB/s" for bytes a second`},
		{in: "5megabits/sec", err: `"5megabits/sec" is not understood: write "5mbit"`},
		{in: "5 Mbit/second", err: `"5 Mbit/second" is not understood: write "5mbit"`},
		{in: "5Mbytes", err: `"5Mbytes" is not understood: write "5MB/s"`},
		{in: "5mbti", err: `"5mbti" is not understood: did you mean "5mbit"?`},
		{in: "5e3mbit", err: units("5e3mbit")},
		{in: "5ps", err: units("5ps")},
		{in: "5nbit", err: units("5nbit")},
		{in: "40%", err: `"40%" is not understood: a percentage has no meaning here, only in a branch's rate and ceil`},
		{in: "10mibit", err: `"10mibit" is not understood: write "10485760bit" for powers of 1024, or "10mbit" for powers of 1000`},
		{in: "10zbit", err: units("10zbit")},
		{in: "10zbps", err: units("10zbps")},
		{in: "10zb", err: units("10zb")},
		{in: "1e6bit", err: units("1e6bit")},
		{in: "10 apples", err: units("10 apples")},
		{in: "10mbit 5", err: units("10mbit 5")},
		{in: "10\tmbit", err: `"10\tmbit" is not understood: units are bit, kbit, mbit, gbit, tbit (bits a second) and B/s, kB/s, MB/s, MiB/s, GB/s ... (bytes a second)`},
		{in: "-5mbit", err: `"-5mbit" is negative`},
		{in: "+5mbit", err: `"+5mbit" does not begin with a number: write one and its unit, as in "10mbit"`},
		{in: "mbit", err: `"mbit" does not begin with a number: write one and its unit, as in "10mbit"`},
		{in: ".5mbit", err: `".5mbit" does not begin with a number: write one and its unit, as in "10mbit"`},
		{in: "5.mbit", err: `"5.mbit" does not begin with a number: write one and its unit, as in "10mbit"`},
		{in: "1.2.3mbit", err: `"1.2.3mbit" does not begin with a number: write one and its unit, as in "10mbit"`},
		{in: "1.5bit", err: `"1.5bit" is not a whole number of bits: use fewer digits behind the point`},
		{in: "0.1B/s", err: `"0.1B/s" is not a whole number of bits: use fewer digits behind the point`},
		{in: "0mbit", err: `"0mbit" is no bandwidth; the kernel cannot shape to nothing, the least is "8bit"`},
		{in: "0.0kbit", err: `"0.0kbit" is no bandwidth; the kernel cannot shape to nothing, the least is "8bit"`},
		{in: "101tbit", err: `"101tbit" is more than 100tbit`},
		{in: "18446744073709551616bit", err: `"18446744073709551616bit" is too large`},
		{in: "18446744073709551tbit", err: `"18446744073709551tbit" is too large`},
		{in: "18446744073709551.5tbit", err: `"18446744073709551.5tbit" is too large`},
		{in: "1000000000000000000000000000000bit", err: `"1000000000000000000000000000000bit" has too many digits`},
	})
}

// TestBandwidthAdvice holds that what is proposed is read, whatever was written.
func TestBandwidthAdvice(t *testing.T) {
	proposed := regexp.MustCompile(`"([0-9][^"]*)"`)
	for _, prefix := range []string{"", "k", "K", "m", "M", "Mi", "gi", "g", "T", "giga", "Kilo"} {
		for _, of := range []string{"", "b", "B", "bit", "Bits", "byte", "Bytes"} {
			for _, per := range []string{"", "/s", "ps", "PS", "/sec", "/second"} {
				in := "5" + prefix + of + per
				_, err := ParseBandwidth(in)
				if err == nil || of == "" && per != "" {
					continue
				}
				all := proposed.FindAllStringSubmatch(err.Error(), -1)[1:] // the first is what was written
				if len(all) == 0 {
					t.Errorf("nothing is proposed: %v", err)
				}
				for _, p := range all {
					if _, err := ParseBandwidth(p[1]); err != nil {
						t.Errorf("%q: what is proposed is refused: %v", in, err)
					}
				}
			}
		}
	}
}

func TestBandwidthString(t *testing.T) {
	for want, b := range map[string]Bandwidth{
		"0bit": 0, "7bit": 7, "1kbit": 1000, "1500kbit": 1_500_000, "940mbit": 940 * Mbit, "1gbit": Gbit, "1001mbit": 1001 * Mbit, "100tbit": MaxBandwidth,
	} {
		if got := b.String(); got != want {
			t.Errorf("%d prints as %s, want %s", uint64(b), got, want)
		}
	}
}

func TestBandwidthKernel(t *testing.T) {
	for in, want := range map[Bandwidth]Bandwidth{0: 8, 1: 8, 7: 8, 8: 8, 15: 8, 16: 16, Mbit + 3: Mbit, MaxBandwidth: MaxBandwidth} {
		if got := in.Kernel(); got != want {
			t.Errorf("kernel keeps %v as %v, want %v", in, got, want)
		}
	}
}

func TestParseSize(t *testing.T) {
	two := func(in, u, ten, bin string) string {
		return `"` + in + `" is not understood: "` + u + `" may mean 1000 or 1024: write "` + ten + `" for powers of 1000, or "` + bin + `" for 1024, as tc reads it`
	}
	check(t, ParseSize, []read[Size]{
		{in: "0b", want: 0},
		{in: "1600b", want: 1600},
		{in: "15kb", want: 15_000},
		{in: "15 kb", want: 15_000},
		{in: "64kib", want: 64 << 10},
		{in: "1.5mib", want: 3 << 19},
		{in: "2mb", want: 2_000_000},
		{in: "1gb", want: 1_000_000_000},
		{in: "1gib", want: 1 << 30},
		{in: "4294967295b", want: MaxSize},

		{in: "", err: `"" is empty: a size needs a unit: write "10b" for bytes or "10kb" for kilobytes`},
		{in: "15", err: `"15" is not understood: a size needs a unit: write "15b" for bytes or "15kb" for kilobytes`},
		{in: "15k", err: two("15k", "k", "15kb", "15kib")},
		{in: "15M", err: two("15M", "M", "15mb", "15mib")},
		{in: "15KB", err: `"15KB" is not understood: write "15kb"`},
		{in: "15KiB", err: `"15KiB" is not understood: write "15kib"`},
		{in: "15B", err: `"15B" is not understood: write "15b"`},
		{in: "15kbit", err: `"15kbit" is not understood: sizes are bytes: write "15b", "15kb" or "15mb"`},
		{in: "1,5mib", err: `"1,5mib" is not understood: write the fraction behind a point: "1.5mib"`},
		{in: "15kB/s", err: `"15kB/s" is not understood: units are b, kb, mb, gb (powers of 1000) and kib, mib, gib (powers of 1024)`},
		{in: "15%", err: `"15%" is not understood: units are b, kb, mb, gb (powers of 1000) and kib, mib, gib (powers of 1024)`},
		{in: "1.5b", err: `"1.5b" is not a whole number of bytes: use fewer digits behind the point`},
		{in: "-1b", err: `"-1b" is negative`},
		{in: "kb", err: `"kb" does not begin with a number: write one and its unit, as in "10kib"`},
		{in: "4gib", err: `"4gib" is more than the kernel's 4294967295b`},
		{in: "99999999999999999999b", err: `"99999999999999999999b" is too large`},
	})
}

func TestParseClassID(t *testing.T) {
	check(t, ParseClassID, []read[ClassID]{
		{in: "71f:", want: ID(0)},
		{in: "71f:1a2b", want: ID(0x1a2b)},
		{in: "71F:1A2B", want: ID(0x1a2b)},
		{in: "ffff:ffff", want: 0xffffffff},
		{in: "0:", want: 0},
		{in: "0:1", want: 1},

		{in: "", err: `class id "" has no colon: write major:minor in hexadecimal, for example 71f:2`},
		{in: "71f", err: `class id "71f" has no colon: write major:minor in hexadecimal, for example 71f:2`},
		{in: ":1", err: `class id ":1": "" is not a hexadecimal number of at most ffff`},
		{in: "0x71f:1", err: `class id "0x71f:1": "0x71f" is not a hexadecimal number of at most ffff`},
		{in: "10000:1", err: `class id "10000:1": "10000" is not a hexadecimal number of at most ffff`},
		{in: "71f:10000", err: `class id "71f:10000": "10000" is not a hexadecimal number of at most ffff`},
		{in: "71f:1:2", err: `class id "71f:1:2": "1:2" is not a hexadecimal number of at most ffff`},
		{in: "71f: 1", err: `class id "71f: 1": " 1" is not a hexadecimal number of at most ffff`},
		{in: "g:1", err: `class id "g:1": "g" is not a hexadecimal number of at most ffff`},
	})
	if c := ID(0x1a2b); c.Major() != Major || c.Minor() != 0x1a2b || c.String() != "71f:1a2b" || ID(0).String() != "71f:" {
		t.Errorf("%v has major %x, minor %x", c, c.Major(), c.Minor())
	}
}

func TestParseAmount(t *testing.T) {
	percent := func(s string) Amount {
		t.Helper()
		a, err := ParseAmount(s)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	bad := func(in string) string {
		return `"` + in + `" is no percentage: write a number from 0.001 to 100 in front of the % sign`
	}
	check(t, ParseAmount, []read[Amount]{
		{in: "10mbit", want: Absolute(10 * Mbit)},
		{in: "40%", want: percent("40.000%")},
		{in: " 40 % ", want: percent("40%")},
		{in: "12.5%", want: percent("12.500%")},
		{in: "100%", want: percent("100.0%")},
		{in: "0.001%", want: percent("0.001%")},

		{in: "%", err: bad("%")},
		{in: ".5%", err: bad(".5%")},
		{in: "5.%", err: bad("5.%")},
		{in: "-5%", err: bad("-5%")},
		{in: "+5%", err: bad("+5%")},
		{in: "5.+1%", err: bad("5.+1%")},
		{in: "1e1%", err: bad("1e1%")},
		{in: "5%%", err: bad("5%%")},
		{in: "99999999999%", err: bad("99999999999%")},
		{in: "33.3333%", err: `"33.3333%" has more than three digits behind the point`},
		{in: "0%", err: `"0%" is not between 0.001% and 100%, which is all that there is`},
		{in: "0.000%", err: `"0.000%" is not between 0.001% and 100%, which is all that there is`},
		{in: "100.001%", err: `"100.001%" is not between 0.001% and 100%, which is all that there is`},
		{in: "4294967295.999%", err: `"4294967295.999%" is not between 0.001% and 100%, which is all that there is`},
		{in: "40", err: `"40" is not understood: a bandwidth needs a unit: write "40mbit" for megabits or "40MB/s" for megabytes a second; tc reads a bare number as bits`},
		{in: "0bit", err: `"0bit" is no bandwidth; the kernel cannot shape to nothing, the least is "8bit"`},
	})
	if !(Amount{}).IsZero() || percent("1%").IsZero() || Absolute(1).IsZero() || Absolute(1).Percent() || !percent("1%").Percent() {
		t.Error("IsZero or Percent is wrong")
	}
	for want, a := range map[string]Amount{"10mbit": Absolute(10 * Mbit), "12.5%": percent("12.5%"), "100%": percent("100%"), "0.001%": percent("0.001%"), "10%": percent("10%")} {
		if got := a.String(); got != want {
			t.Errorf("prints %s, want %s", got, want)
		}
	}
}

// TestParseLine: a share of a line is what it comes to once that is known, and is written down
// with it.
func TestParseLine(t *testing.T) {
	line := func(s string) Amount {
		t.Helper()
		a, err := ParseLine(s)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	check(t, ParseLine, []read[Amount]{
		{in: "10mbit", want: Absolute(10 * Mbit)},
		{in: " link ", want: line("100% of link")},
		{in: "95%  link", want: line("95.0 % of link")},
		{in: "of link", want: line("link")},
		{in: "0.95 of link", err: `"0.95 of link" is no share of the link: write "link" for all of it, or a percentage as in "95% of link"`},
		{in: "10mbit of link", err: `"10mbit of link" is no share of the link: write "link" for all of it, or a percentage as in "95% of link"`},
		{in: "0% of link", err: `"0%" is not between 0.001% and 100%, which is all that there is`},
	})
	check(t, ParseAmount, []read[Amount]{
		{in: "link", err: `"link" is of the link, as only the rate of an interface and what it receives can be: a percentage alone is of the parent's`},
	})
	s := &Spec{Interface: "eth0", BranchSpec: BranchSpec{Rate: line("95% of link"), Ingress: &BranchSpec{Rate: line("link")}}}
	if !s.OfLink() || s.Link() != 0 || s.Rate.Percent() || s.Rate.String() != "95% of link" || s.Ingress.Rate.String() != "link" {
		t.Errorf("before the speed is known: %+v", s)
	}
	is := s.At(Gbit)
	if !is.OfLink() || is.Link() != Gbit || is.Rate.Of(0) != 950*Mbit || is.Ingress.Rate.Of(0) != Gbit || s.Link() != 0 || s.Ingress.Rate.Of(0) != 0 {
		t.Errorf("on a line of 1gbit: %+v of %+v", is, s)
	}
	for _, a := range []Amount{s.Rate, s.Ingress.Rate, is.Rate, is.Ingress.Rate} {
		b, err := a.MarshalText()
		var got Amount
		if err == nil {
			err = got.UnmarshalText(b)
		}
		if err != nil || got != a {
			t.Errorf("%s is read as %v, %v", b, got, err)
		}
	}
	if again := is.At(100 * Mbit); again.Rate.Of(0) != 95*Mbit || again.Link() != 100*Mbit {
		t.Errorf("on another line: %+v", again)
	}
}

// Of must be exact where milli × parent passes 2^64.
func TestAmountOf(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	parents := []Bandwidth{0, 1, 8, 99_999, 100_000, 100_001, MaxBandwidth - 1, MaxBandwidth, math.MaxUint64}
	for range 200 {
		parents = append(parents, Bandwidth(rnd.Uint64()>>rnd.UintN(64)))
	}
	for _, text := range []string{"0.001%", "0.999%", "1%", "33.333%", "50%", "66.667%", "99.999%", "100%"} {
		a, err := ParseAmount(text)
		if err != nil {
			t.Fatal(err)
		}
		share, _ := new(big.Rat).SetString(strings.TrimSuffix(text, "%"))
		share.Quo(share, big.NewRat(100, 1))
		for _, p := range parents {
			exact := new(big.Rat).Mul(share, new(big.Rat).SetInt(new(big.Int).SetUint64(uint64(p))))
			want := new(big.Int).Quo(exact.Num(), exact.Denom()).Uint64()
			if got := a.Of(p); uint64(got) != want {
				t.Errorf("%s of %d is %d, want %d", text, uint64(p), uint64(got), want)
			}
		}
	}
	if got := Absolute(5).Of(math.MaxUint64); got != 5 {
		t.Errorf("5bit of anything is %v", got)
	}
}

func TestPath(t *testing.T) {
	p := Path("eth0").Join("web").Join("api")
	if p != "eth0/web/api" || p.Interface() != "eth0" || p.Base() != "api" || p.Parent() != "eth0/web" {
		t.Errorf("%s: interface %s, base %s, parent %s", p, p.Interface(), p.Base(), p.Parent())
	}
	if i := Path("eth0"); i.Interface() != "eth0" || i.Base() != "eth0" || i.Parent() != "" {
		t.Errorf("%s: interface %s, base %s, parent %q", i, i.Interface(), i.Base(), i.Parent())
	}
	for _, r := range []struct {
		p, q Path
		want bool
	}{
		{"eth0/web/api", "eth0/web", true}, {"eth0/web", "eth0/web", true}, {"eth0/web", "eth0", true},
		{"eth0/web", "eth0/web/api", false}, {"eth0/webapi", "eth0/web", false}, {"eth01", "eth0", false}, {"eth0", "", false},
	} {
		if got := r.p.Below(r.q); got != r.want {
			t.Errorf("%s below %s: %v, want %v", r.p, r.q, got, r.want)
		}
	}
}

func TestParamParse(t *testing.T) {
	limit := Param{Name: "limit", Type: Count, Min: 1, Max: 1000}
	few := Param{Name: "bands", Type: Count, Min: 2, Max: 16}
	size := Param{Name: "memory_limit", Type: Bytes, Min: 1000}
	target := Param{Name: "target", Type: Duration, Min: 1000, Max: 1e9}
	rate := Param{Name: "maxrate", Type: Rate, Min: 8}
	ecn := Param{Name: "ecn", Type: Flag, Max: 1}
	mode := Param{Name: "mode", Type: Choice, Choices: []string{"blind", "flows"}}
	loss := Param{Name: "loss", Type: Percent}
	overhead := Param{Name: "overhead", Type: Signed, Min: 1<<64 - 64, Max: 256}
	weights := Param{Name: "weights", Type: Numbers, Len: 3, Min: 1, Max: 1<<21 - 1}
	rtt := Param{Name: "rtt", Type: Duration, Names: []Setting{{"lan", 1e6}, {"metro", 1e7}}}
	odd := Param{Name: "odd", Type: ParamType(77)}
	switches := "ecn is a switch: write ecn = true or ecn = false"
	for _, r := range []struct {
		name   string
		param  Param
		text   string
		quoted bool
		want   uint64
		err    string
	}{
		{"count", limit, "100", false, 100, ""},
		{"count least", limit, "1", false, 1, ""},
		{"count most", limit, "1000", false, 1000, ""},
		{"count below", limit, "0", false, 0, "limit 0 is not between 1 and 1000"},
		{"count above", limit, "1001", false, 0, "limit 1001 is not between 1 and 1000"},
		{"count quoted", limit, "100", true, 0, "limit is a number: write limit = 100 without quotes and unit"},
		{"count negative", limit, "-1", false, 0, "limit -1 is negative: write limit = 100 or another number from 1 up"},
		{"count whose example must fit", few, "x", true, 0, "bands is a number: write bands = 16 without quotes and unit"},
		{"count of 65 bits", limit, "18446744073709551616", false, 0, "limit is a number: write limit = 100 without quotes and unit"},
		{"count negative and quoted", limit, "-1", true, 0, "limit is a number: write limit = 100 without quotes and unit"},
		{"size", size, "32kib", true, 32768, ""},
		{"size below", size, "1b", true, 0, "memory_limit 1b is below 1kb"},
		{"size bare", size, "32", false, 0, `memory_limit is a size: write memory_limit = "64kib", with its unit and in quotes`},
		{"size without a unit", size, "32", true, 0, `"32" is not understood: a size needs a unit: write "32b" for bytes or "32kb" for kilobytes`},
		{"time", target, "5ms", true, 5_000_000, ""},
		{"time above", target, "5s", true, 0, "target 5s is not between 1µs and 1s"},
		{"time bare", target, "5", false, 0, `target is a time: write target = "5ms" (units ns, us, ms, s)`},
		{"time without a unit", target, "5", true, 0, `target is a time: write target = "5ms" (units ns, us, ms, s)`},
		{"time whose example must fit", Param{Name: "target", Type: Duration, Min: 20e6, Max: 1e9}, "5", true, 0, `target is a time: write target = "20ms" (units ns, us, ms, s)`},
		{"time up to a day", Param{Name: "perturb", Type: Duration, Max: 24 * 3600e9}, "5", true, 0, `perturb is a time: write perturb = "10s" (units ns, us, ms, s)`},
		{"time negative", target, "-5ms", true, 0, `target "-5ms" is negative`},
		{"rate", rate, "10mbit", true, 10_000_000, ""},
		{"rate below", rate, "1bit", true, 0, "maxrate 1bit is below 8bit"},
		{"rate bare", rate, "10", false, 0, `maxrate is a bandwidth: write maxrate = "10mbit", with its unit and in quotes`},
		{"rate percentage", rate, "10%", true, 0, `"10%" is not understood: a percentage has no meaning here, only in a branch's rate and ceil`},
		{"flag on", ecn, "true", false, 1, ""},
		{"flag off", ecn, "false", false, 0, ""},
		{"flag quoted", ecn, "true", true, 0, switches},
		{"flag number", ecn, "1", false, 0, switches},
		{"choice", mode, "flows", true, 1, ""},
		{"choice unknown", mode, "hosts", true, 0, `mode is one of "blind", "flows"`},
		{"choice bare", mode, "1", false, 0, `mode is one of "blind", "flows"`},
		{"percentage", loss, "1%", true, 42949673, ""},
		{"percentage with a fraction", loss, "0.005%", true, 214748, ""},
		{"percentage of nothing", loss, "0%", true, 0, ""},
		{"percentage of all", loss, "100%", true, Whole, ""},
		{"percentage between two", loss, "70%", true, 3006477106, ""},
		{"percentage smallest", loss, "0.00000002%", true, 1, ""},
		{"percentage above", loss, "100.1%", true, 0, `"100.1%" is more than 100%`},
		{"percentage above its own range", Param{Name: "loss", Type: Percent, Max: Whole/2 + 1}, "60%", true, 0, "loss 60% is not between 0% and 50%"},
		{"percentage bare", loss, "1", false, 0, `loss is a percentage: write loss = "1%", with its sign and in quotes`},
		{"percentage without a sign", loss, "1", true, 0, `"1" is not understood: a percentage needs its sign: write "1%"`},
		{"percentage too fine", loss, "0.000000001%", true, 0, `"0.000000001%" is not a whole number of 0.00000001 percents: use fewer digits behind the point`},
		{"signed", overhead, "-64", false, 1<<64 - 64, ""},
		{"signed above 0", overhead, "256", false, 256, ""},
		{"signed below", overhead, "-65", false, 0, "overhead -65 is not between -64 and 256"},
		{"signed above", overhead, "257", false, 0, "overhead 257 is not between -64 and 256"},
		{"signed quoted", overhead, "1", true, 0, "overhead is a number: write overhead = 0 without quotes and unit"},
		{"numbers", weights, "1 2 2097151", true, 1 | 2<<21 | 2097151<<42, ""},
		{"numbers below", weights, "1 0 3", true, 0, "a number of weights 0 is not between 1 and 2097151"},
		{"numbers too few", weights, "1 2", true, 0, `weights is 3 numbers: write weights = "100 100 100", in quotes`},
		{"numbers of letters", weights, "1 2 x", true, 0, `"x" in weights is not a number: write weights = "100 100 100"`},
		{"numbers bare", weights, "1", false, 0, `weights is 3 numbers: write weights = "100 100 100", in quotes`},
		{"named", rtt, "metro", true, 10_000_000, ""},
		{"named or not", rtt, "100ms", true, 100_000_000, ""},
		{"name unknown", rtt, "moon", true, 0, `rtt is a time: write rtt = "5ms" (units ns, us, ms, s) or one of "lan", "metro"`},
		{"type unknown", odd, "1", false, 0, "odd has an unknown type"},
	} {
		t.Run(r.name, func(t *testing.T) {
			got, err := r.param.Parse(RawParam{r.param.Name, r.text, r.quoted})
			text := ""
			if err != nil {
				text = err.Error()
			}
			if d := cmp.Diff(r.err, text); d != "" || got != r.want {
				t.Errorf("got %d, want %d; error (-want +got):\n%s", got, r.want, d)
			}
			if err == nil && r.param.Type != Duration {
				if back := r.param.Format(got); r.param.Type != Bytes && r.param.Type != Choice && back != r.text {
					t.Errorf("formats as %s, want %s", back, r.text)
				}
			}
		})
	}
	if got := mode.Format(1) + mode.Format(7); got != "flows7" {
		t.Errorf("choices format as %s", got)
	}
}

// Every percentage is written so that it is read back as the same number.
func TestPercentText(t *testing.T) {
	p := Param{Name: "loss", Type: Percent}
	for v := uint64(0); v <= Whole; v += 1 + v/13 + v%7 {
		text := p.Format(v)
		if back, err := p.Parse(RawParam{"loss", text, true}); err != nil || back != v {
			t.Fatalf("%d is written %s, which is read as %d, %v", v, text, back, err)
		}
	}
}

func TestPack(t *testing.T) {
	for _, n := range [][]uint64{{1, 2, 2, 2, 1, 2, 0, 0, 1, 1, 1, 1, 1, 1, 1, 15}, {589824, 196608, 65536}, {1 << 63}} {
		if d := cmp.Diff(n, Unpack(Pack(n), len(n))); d != "" {
			t.Errorf("(-want +got)\n%s", d)
		}
	}
}

func TestQdisc(t *testing.T) {
	k := Kind{Name: "x", Params: []Param{{Name: "a"}, {Name: "b"}}}
	s := []Setting{{"b", 1}, {"a", 2}}
	k.Sort(s)
	q := Qdisc{"x", s}
	if !q.Equal(Qdisc{"x", []Setting{{"a", 2}, {"b", 1}}}) || q.Equal(Qdisc{"y", s}) || q.Equal(Qdisc{"x", s[:1]}) {
		t.Errorf("sorted settings %v do not compare", s)
	}
	if v, ok := q.Get("b"); v != 1 || !ok {
		t.Errorf("b is %d, %v", v, ok)
	}
	if _, ok := q.Get("c"); ok || k.Param("c") != nil || k.Param("b") != &k.Params[1] {
		t.Error("a parameter that is not there is found, or one that is there is not")
	}
}

func TestCheckName(t *testing.T) {
	check(t, func(s string) (bool, error) { err := CheckName(s); return err == nil, err }, []read[bool]{
		{in: "web", want: true},
		{in: "rest", want: true},
		{in: "_x", want: true},
		{in: "0", want: true},
		{in: "a@b+c-d_E9", want: true},
		{in: strings.Repeat("a", 64), want: true},
		{in: "", err: "a branch without a name"},
		{in: strings.Repeat("a", 65), err: "the name is longer than 64 bytes"},
		{in: "rate", err: `"rate" is a key of the policy and cannot name a branch`},
		{in: "ingress", err: `"ingress" is a key of the policy and cannot name a branch`},
		{in: "my.web", err: `the name "my.web" is not made of letters, digits, _ - @ and +, the first a letter, digit or _: write "my-web"`},
		{in: "a/b", err: `the name "a/b" is not made of letters, digits, _ - @ and +, the first a letter, digit or _: write "a-b"`},
		{in: "-a", err: `the name "-a" is not made of letters, digits, _ - @ and +, the first a letter, digit or _: write "a"`},
		{in: "é", err: `the name "é" is not made of letters, digits, _ - @ and +, the first a letter, digit or _`},
	})
}

// fuzz holds a reader to: a value or an error, never both; and what it read is
// read back from what it prints.
func fuzz[T interface {
	comparable
	String() string
}](f *testing.F, parse func(string) (T, error), seeds ...string) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		v, err := parse(in)
		var zero T
		if err != nil {
			if v != zero {
				t.Errorf("%q gives %v and the error %v", in, v, err)
			}
			if m := err.Error(); strings.ContainsFunc(m, func(r rune) bool { return r < ' ' }) {
				t.Errorf("%q: the error has a control character: %q", in, m)
			}
			return
		}
		if back, err := parse(v.String()); err != nil || back != v {
			t.Errorf("%q is %v, which is read as %v, %v", in, v, back, err)
		}
	})
}

func FuzzParseBandwidth(f *testing.F) {
	fuzz(f, ParseBandwidth, "10mbit", "1.5gbit", "5MiB/s", "mbps", "5M", "100tbit", "0.1B/s", "", "-1bit", "5b/s", "%")
}

func FuzzParseSize(f *testing.F) {
	fuzz(f, ParseSize, "1600b", "1.5mib", "15k", "4gib", "", "1,5kb")
}

func FuzzParseClassID(f *testing.F) {
	fuzz(f, ParseClassID, "71f:1a2b", "71f:", ":", "0:0", "10000:1")
}

func FuzzParseAmount(f *testing.F) {
	fuzz(f, ParseAmount, "40%", "12.5%", "10mbit", "0.001%", "100.001%", "%", " % ")
}

// The text forms are those of String and Parse, and a failure leaves the value.
func TestText(t *testing.T) {
	type text interface {
		MarshalText() ([]byte, error)
		UnmarshalText([]byte) error
	}
	b, s, c, d := 940*Mbit, 64*KiB, ID(2), bind.Binding{Kind: bind.User, Name: "backup"}
	for want, v := range map[string]text{"940mbit": &b, "64kib": &s, "71f:2": &c, "user:backup": &d} {
		got, err := v.MarshalText()
		if err != nil || string(got) != want {
			t.Errorf("%T prints as %s, %v", v, got, err)
		}
		if err := v.UnmarshalText([]byte("!")); err == nil {
			t.Errorf("%T reads nonsense", v)
		}
		if got, err = v.MarshalText(); err != nil || string(got) != want {
			t.Errorf("%T is %s after nonsense", v, got)
		}
		if err := v.UnmarshalText(got); err != nil {
			t.Error(err)
		}
	}
}
