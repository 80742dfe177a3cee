package hierarchy

import (
	"cmp"
	"fmt"
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
)

// Param describes one parameter of a kind, under the name that tc's manual
// gives it.
type Param struct {
	Name     string
	Type     ParamType
	Min, Max uint64 // the accepted range in base units, both included; Max 0 means no upper bound
	Choices  []string
	Negative string // how tc writes a Flag that is off, such as "noecn"; empty: not at all
	Help     string // one line, lower case, without a full stop
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
	var v uint64
	switch p.Type {
	case Count:
		n, err := strconv.ParseUint(r.Text, 10, 64)
		if _, neg := strings.CutPrefix(r.Text, "-"); neg && !r.Quoted {
			return 0, fmt.Errorf("%s %s is negative: write %s = %s or another number from %s up", p.Name, r.Text, p.Name, p.example(), p.Format(p.Min))
		}
		if err != nil || r.Quoted {
			return 0, fmt.Errorf("%s is a number: write %s = %s without quotes and unit", p.Name, p.Name, p.example())
		}
		v = n
	case Bytes:
		if !r.Quoted {
			return 0, fmt.Errorf("%s is a size: write %s = %q, with its unit and in quotes", p.Name, p.Name, p.example())
		}
		s, err := ParseSize(r.Text)
		if err != nil {
			return 0, err
		}
		v = uint64(s)
	case Duration:
		d, err := time.ParseDuration(r.Text)
		if err != nil || !r.Quoted {
			return 0, fmt.Errorf("%s is a time: write %s = %q (units ns, us, ms, s)", p.Name, p.Name, p.example())
		}
		if d < 0 {
			return 0, fmt.Errorf("%s %q is negative", p.Name, r.Text)
		}
		v = uint64(d)
	case Rate:
		if !r.Quoted {
			return 0, fmt.Errorf("%s is a bandwidth: write %s = %q, with its unit and in quotes", p.Name, p.Name, p.example())
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
	default:
		return 0, fmt.Errorf("%s has an unknown type", p.Name)
	}
	if v < p.Min || p.Max != 0 && v > p.Max {
		if p.Max == 0 {
			return 0, fmt.Errorf("%s %s is below %s", p.Name, p.Format(v), p.Format(p.Min))
		}
		return 0, fmt.Errorf("%s %s is not between %s and %s", p.Name, p.Format(v), p.Format(p.Min), p.Format(p.Max))
	}
	return v, nil
}

// example is a usual value that the parameter accepts, as a policy has it without
// quotes.
func (p *Param) example() string {
	v := uint64(100)
	switch p.Type {
	case Bytes:
		v = uint64(64 * KiB)
	case Duration:
		v = uint64(5 * time.Millisecond)
		if p.Max >= uint64(time.Hour) {
			v = uint64(10 * time.Second) // nothing that happens to single packets
		}
	case Rate:
		v = uint64(10 * Mbit)
	}
	v = max(v, p.Min)
	if p.Max != 0 {
		v = min(v, p.Max)
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
	}
	return strconv.FormatUint(v, 10)
}
