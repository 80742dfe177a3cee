package hierarchy

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Qdisc is the queueing discipline of a leaf: its kind and the parameters that
// are set. The zero value stands for "the default of this machine", which is
// settled when the kernel is known.
type Qdisc struct {
	Kind   string    `json:"kind"`
	Params []Setting `json:"params,omitempty"` // in the order of the kind's parameters, each at most once
}

// Setting is one parameter of a queueing discipline. Value is in the base unit
// of the parameter's type: see [ParamType].
type Setting struct {
	Name  string `json:"name"`
	Value uint64 `json:"value"`
}

// Equal says whether both have the same kind and the same settings.
func (q Qdisc) Equal(o Qdisc) bool { return q.Kind == o.Kind && slices.Equal(q.Params, o.Params) }

// Get is the value of a parameter and whether it is set.
func (q Qdisc) Get(name string) (uint64, bool) {
	for _, p := range q.Params {
		if p.Name == name {
			return p.Value, true
		}
	}
	return 0, false
}

// ParamType says how a parameter is written in a policy and what the number of
// a [Setting] counts.
type ParamType uint8

// The types of parameters.
const (
	Count    ParamType = iota // a bare integer
	Bytes                     // a [Size]: bytes
	Duration                  // a Go duration: nanoseconds
	Rate                      // a [Bandwidth]: bits per second
	Flag                      // true or false: 1 or 0
	Choice                    // one of Param.Choices: its index
	Percent                   // "0.5%": 0 to 2^32-1, which is 100%, as the kernel counts probabilities
	Signed                    // a bare integer that may be negative: in two's complement
	Numbers                   // "1 2 2": Param.Len integers, see [Pack]
)

// Param describes one parameter of a kind, under the name that tc's manual
// gives it.
type Param struct {
	Name     string
	Type     ParamType
	Min, Max uint64 // the accepted range in base units, of Numbers that of each, both included; Max 0 means no upper bound, but none above 0 for Signed
	Choices  []string
	Len      int       // how many Numbers it has
	Names    []Setting // values of a Duration that may be given by name
	Negative string    // how tc writes a Flag that is off, such as "noecn"; empty: not at all
	Help     string    // one line, lower case, without a full stop
}

// Kind describes one queueing discipline as far as a policy can be checked
// without a kernel. Package tc lists those it can encode.
type Kind struct {
	Name   string
	Help   string // one line, lower case, without a full stop
	Params []Param
	// Verify checks parameters against each other. It may be nil. Its error
	// says what is wrong and what to write instead.
	Verify func(Qdisc) error
}

// Param is the description of the parameter called name, or nil.
func (k *Kind) Param(name string) *Param {
	for i := range k.Params {
		if k.Params[i].Name == name {
			return &k.Params[i]
		}
	}
	return nil
}

// Sort puts settings into the order of the kind's parameters, which is what
// makes equal disciplines compare equal.
func (k *Kind) Sort(s []Setting) {
	at := func(n string) int { return slices.IndexFunc(k.Params, func(p Param) bool { return p.Name == n }) }
	slices.SortStableFunc(s, func(a, b Setting) int { return cmp.Compare(at(a.Name), at(b.Name)) })
}

// RawParam is a parameter as a policy has it: Text is the value, Quoted whether
// it was written as a string.
type RawParam struct {
	Name, Text string
	Quoted     bool
}

// Parse reads one value of the parameter and checks its type and range.
func (p *Param) Parse(r RawParam) (uint64, error) {
	for _, n := range p.Names {
		if r.Quoted && r.Text == n.Name {
			return n.Value, nil
		}
	}
	var v uint64
	switch p.Type {
	case Count:
		n, err := strconv.ParseUint(r.Text, 10, 64)
		if _, neg := strings.CutPrefix(r.Text, "-"); neg && !r.Quoted {
			return 0, fmt.Errorf("%s %s is negative: write %s = %s or another number from %s up", p.Name, r.Text, p.Name, p.Example(), p.Format(p.Min))
		}
		if err != nil || r.Quoted {
			return 0, fmt.Errorf("%s is a number: write %s = %s without quotes and unit", p.Name, p.Name, p.Example())
		}
		v = n
	case Bytes:
		if !r.Quoted {
			return 0, fmt.Errorf("%s is a size: write %s = %q, with its unit and in quotes", p.Name, p.Name, p.Example())
		}
		s, err := ParseSize(r.Text)
		if err != nil {
			return 0, err
		}
		v = uint64(s)
	case Duration:
		d, err := time.ParseDuration(r.Text)
		if err != nil || !r.Quoted {
			return 0, fmt.Errorf("%s is a time: write %s = %q (units ns, us, ms, s)%s", p.Name, p.Name, p.Example(), p.names())
		}
		if d < 0 {
			return 0, fmt.Errorf("%s %q is negative", p.Name, r.Text)
		}
		v = uint64(d)
	case Rate:
		if !r.Quoted {
			return 0, fmt.Errorf("%s is a bandwidth: write %s = %q, with its unit and in quotes", p.Name, p.Name, p.Example())
		}
		b, err := ParseBandwidth(r.Text)
		if err != nil {
			return 0, err
		}
		v = uint64(b)
	case Flag:
		if r.Quoted || r.Text != "true" && r.Text != "false" {
			return 0, fmt.Errorf("%s is a switch: write %s = true or %s = false", p.Name, p.Name, p.Name)
		}
		if r.Text == "true" {
			v = 1
		}
	case Choice:
		i := slices.Index(p.Choices, r.Text)
		if i < 0 || !r.Quoted {
			return 0, fmt.Errorf("%s is one of \"%s\"", p.Name, strings.Join(p.Choices, "\", \""))
		}
		return uint64(i), nil
	case Percent:
		if !r.Quoted {
			return 0, fmt.Errorf("%s is a percentage: write %s = %q, with its sign and in quotes", p.Name, p.Name, p.Example())
		}
		x, err := parsePercent(r.Text)
		if err != nil {
			return 0, err
		}
		v = x
	case Signed:
		n, err := strconv.ParseInt(r.Text, 10, 64)
		if err != nil || r.Quoted {
			return 0, fmt.Errorf("%s is a number: write %s = %s without quotes and unit", p.Name, p.Name, p.Example())
		}
		if n < int64(p.Min) || n > int64(p.Max) {
			return 0, fmt.Errorf("%s %d is not between %s and %s", p.Name, n, p.Format(p.Min), p.Format(p.Max))
		}
		return uint64(n), nil
	case Numbers:
		return p.parseNumbers(r)
	default:
		return 0, fmt.Errorf("%s has an unknown type", p.Name)
	}
	return p.within(v)
}

// within is v, or an error where the parameter does not take it.
func (p *Param) within(v uint64) (uint64, error) {
	if v < p.Min || p.Max != 0 && v > p.Max {
		if p.Max == 0 {
			return 0, fmt.Errorf("%s %s is below %s", p.Name, p.Format(v), p.Format(p.Min))
		}
		return 0, fmt.Errorf("%s %s is not between %s and %s", p.Name, p.Format(v), p.Format(p.Min), p.Format(p.Max))
	}
	return v, nil
}

// names lists what may be written instead of a value.
func (p *Param) names() string {
	var s strings.Builder
	for i, n := range p.Names {
		if i == 0 {
			s.WriteString(" or one of ")
		} else {
			s.WriteString(", ")
		}
		s.WriteString(strconv.Quote(n.Name))
	}
	return s.String()
}

func (p *Param) parseNumbers(r RawParam) (uint64, error) {
	words := strings.Fields(r.Text)
	if len(words) != p.Len || !r.Quoted {
		return 0, fmt.Errorf("%s is %d numbers: write %s = %q, in quotes", p.Name, p.Len, p.Name, p.Example())
	}
	one := Param{Name: "a number of " + p.Name, Type: Count, Min: p.Min, Max: p.Max}
	n := make([]uint64, len(words))
	for i, w := range words {
		x, err := strconv.ParseUint(w, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%q in %s is not a number: write %s = %q", w, p.Name, p.Name, p.Example())
		}
		if n[i], err = one.within(x); err != nil {
			return 0, err
		}
	}
	return Pack(n), nil
}

// Pack is the value of a parameter of type Numbers: each number has 64/len(n)
// bits, the first the lowest, and must fit in them.
func Pack(n []uint64) (v uint64) {
	for i, x := range n {
		v |= x << (i * (64 / len(n)))
	}
	return v
}

// Unpack gives the count numbers that [Pack] put into v.
func Unpack(v uint64, count int) []uint64 {
	n := make([]uint64, count)
	width := 64 / max(count, 1)
	for i := range n {
		n[i] = v >> (i * width) & (1<<width - 1)
	}
	return n
}

// Whole is 100% of a parameter of type Percent.
const Whole = 1<<32 - 1

// percentDigits is 100% in the finest steps that are read: digits enough to tell
// all values of type Percent apart.
const percentDigits = 100 * 100_000_000

func parsePercent(s string) (uint64, error) {
	v, err := parseQuantity(s, []unit{{"%", percentDigits / 100}}, "0.00000001 percent", func(num, _ string) string {
		return fmt.Sprintf("a percentage needs its sign: write \"%s%%\"", num)
	})
	if err != nil {
		return 0, err
	}
	if v > percentDigits {
		return 0, fmt.Errorf("%q is more than 100%%", s)
	}
	return portion(v, Whole, percentDigits), nil
}

// formatPercent has as few digits behind the point as parsePercent needs.
func formatPercent(v uint64) string {
	v = min(v, Whole)
	digits := 0
	for steps := uint64(100); ; steps *= 10 {
		n := portion(v, steps, Whole)
		if portion(n, Whole, steps) == v {
			return strconv.FormatFloat(float64(n)/float64(steps/100), 'f', digits, 64) + "%"
		}
		digits++
	}
}

// portion is v*num/den, rounded to the nearest and halves to the even number, as
// tc has it (set_percent, tc/q_netem.c, iproute2 6.1), for v up to den.
func portion(v, num, den uint64) uint64 {
	hi, lo := bits.Mul64(v, num)
	q, r := bits.Div64(hi, lo, den)
	if r > den-r || r == den-r && q%2 == 1 {
		q++
	}
	return q
}

// Example is a usual value that the parameter accepts, as a policy has it without
// quotes.
func (p *Param) Example() string {
	v := uint64(100)
	switch p.Type {
	case Bytes:
		v = uint64(64 * KiB)
	case Duration:
		v = uint64(5 * time.Millisecond)
		if p.Max >= uint64(time.Hour) && p.Names == nil {
			v = uint64(10 * time.Second) // nothing that happens to single packets
		}
	case Rate:
		v = uint64(10 * Mbit)
	case Percent:
		v = (Whole + 50) / 100
	case Signed: // whose Min and Max are compared as the numbers that they stand for
		return p.Format(uint64(min(max(int64(0), int64(p.Min)), int64(p.Max))))
	}
	v = max(v, p.Min)
	if p.Max != 0 {
		v = min(v, p.Max)
	}
	if p.Type == Numbers {
		return p.Format(Pack(slices.Repeat([]uint64{v}, p.Len)))
	}
	return p.Format(v)
}

// Format prints a value of the parameter as a policy would have it, without
// quotes.
func (p *Param) Format(v uint64) string {
	switch p.Type {
	case Bytes:
		return Size(v).String()
	case Duration:
		return time.Duration(v).String()
	case Rate:
		return Bandwidth(v).String()
	case Flag:
		return strconv.FormatBool(v != 0)
	case Choice:
		if v < uint64(len(p.Choices)) {
			return p.Choices[v]
		}
	case Percent:
		return formatPercent(v)
	case Signed:
		return strconv.FormatInt(int64(v), 10)
	case Numbers:
		return strings.Trim(fmt.Sprint(Unpack(v, p.Len)), "[]")
	}
	return strconv.FormatUint(v, 10)
}
