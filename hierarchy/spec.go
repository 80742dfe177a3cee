package hierarchy

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/hierarchy/match"
)

// Spec is one interface as a policy has it, with both its directions: nothing worked
// out, nothing checked. [Resolve] makes a [Tree] of it.
type Spec struct {
	Interface string `json:"interface"`         // a [Selector]
	Replace   bool   `json:"replace,omitempty"` // a foreign root qdisc may be replaced
	MTU       Size   `json:"mtu,omitzero"`      // largest packet to expect; zero: the device's own
	Line      Line   `json:"line,omitzero"`
	Flows     uint32 `json:"flows,omitempty"` // room for flows by which received packets are told apart; 0: worked out
	BranchSpec
}

// BranchSpec is one branch as a policy has it. Zero values mean "not written".
type BranchSpec struct {
	Name     string          `json:"name,omitempty"` // empty for the interface itself
	Broken   bool            `json:"-"`              // a number could not be read: what would follow from it is not reported
	Rate     Amount          `json:"rate,omitzero"`
	Ceil     Amount          `json:"ceil,omitzero"`
	Prio     *uint8          `json:"prio,omitempty"` // nil: inherited, at the top 3
	Burst    Size            `json:"burst,omitzero"`
	CBurst   Size            `json:"cburst,omitzero"`
	Quantum  Size            `json:"quantum,omitzero"`
	Qdisc    *RawQdisc       `json:"qdisc,omitempty"`
	Ingress  *BranchSpec     `json:"ingress,omitempty"` // what holds for receiving: Rate to Qdisc of it
	Bind     []bind.Binding  `json:"bind,omitempty"`
	Pods     []bind.Pods     `json:"pods,omitempty"`
	Match    []match.Match   `json:"match,omitempty"` // any of which suffices
	Delegate []bind.Delegate `json:"delegate,omitempty"`
	Children []*BranchSpec   `json:"children,omitempty"`
	// RenamedFrom is the name that the branch had before, or its whole path.
	RenamedFrom string `json:"renamed_from,omitempty"`
}

// RawQdisc is a queueing discipline as a policy has it.
type RawQdisc struct {
	Kind   string     `json:"kind"`
	Params []RawParam `json:"params,omitempty"`
}

// Amount is a bandwidth, or a percentage of the parent's, or of what an interface's line
// carries. The zero value means "not written".
type Amount struct {
	abs   Bandwidth // of the line where link, 0 as long as that is not known
	milli uint32    // thousandths of a percent
	link  bool      // of the line, else of the parent
}

// Absolute is the amount that is b everywhere; b is at most [MaxBandwidth].
func Absolute(b Bandwidth) Amount { return Amount{abs: b} }

// ParseAmount reads a bandwidth (see [ParseBandwidth]) or a percentage above 0
// and up to 100 with at most three digits behind the point: "40%", "12.5%".
func ParseAmount(s string) (Amount, error) {
	if _, ok := ofLink(s); ok {
		return Amount{}, fmt.Errorf("%q is of the link, as only the rate of an interface and what it receives can be: a percentage alone is of the parent's", s)
	}
	num, ok := strings.CutSuffix(strings.TrimSpace(s), "%")
	if !ok {
		b, err := ParseBandwidth(s)
		return Amount{abs: b}, err
	}
	whole, frac, point := strings.Cut(strings.TrimSpace(num), ".")
	w, err := strconv.ParseUint(whole, 10, 32)
	if err != nil || point && frac == "" {
		return Amount{}, fmt.Errorf("%q is no percentage: write a number from 0.001 to 100 in front of the %% sign", s)
	}
	if len(frac) > 3 {
		return Amount{}, fmt.Errorf("%q has more than three digits behind the point", s)
	}
	f, err := strconv.ParseUint((frac + "000")[:3], 10, 32)
	if err != nil {
		return Amount{}, fmt.Errorf("%q is no percentage: write a number from 0.001 to 100 in front of the %% sign", s)
	}
	m := w*1000 + f
	if m == 0 || m > 100_000 {
		return Amount{}, fmt.Errorf("%q is not between 0.001%% and 100%%, which is all that there is", s)
	}
	return Amount{milli: uint32(m)}, nil
}

// ParseLine reads what an interface's line carries: a bandwidth, or a share of what its driver
// says, "link" or "95% of link".
func ParseLine(s string) (Amount, error) {
	share, ok := ofLink(s)
	if !ok {
		return ParseAmount(s)
	}
	a := Amount{milli: 100_000}
	if share != "" {
		var err error
		if !strings.HasSuffix(share, "%") {
			err = fmt.Errorf("%q is no share of the link: write \"link\" for all of it, or a percentage as in \"95%% of link\"", s)
		} else {
			a, err = ParseAmount(share)
		}
		if err != nil {
			return Amount{}, err
		}
	}
	a.link = true
	return a, nil
}

// ofLink is what stands before the link in a share of it, empty where that is all of it.
func ofLink(s string) (share string, ok bool) {
	words := strings.Fields(s)
	if n := len(words); n > 0 && words[n-1] == "link" {
		if words = words[:n-1]; n > 1 && words[n-2] == "of" {
			words = words[:n-2]
		}
		return strings.Join(words, " "), true
	}
	return "", false
}

// IsZero says whether nothing was written.
func (a Amount) IsZero() bool { return a == Amount{} }

// Percent says whether the amount depends on the parent's.
func (a Amount) Percent() bool { return a.milli != 0 && !a.link }

// at is the amount on a line of that speed.
func (a Amount) at(speed Bandwidth) Amount {
	if a.link {
		a.abs = speed
	}
	return a
}

// OfLink says whether what the policy says depends on what the driver says of the line.
func (s *Spec) OfLink() bool { return s.Rate.link || s.Ingress != nil && s.Ingress.Rate.link }

// Link is the speed of the line that the rates are of; 0: it is not known, or does not matter.
func (s *Spec) Link() Bandwidth {
	switch {
	case s.Rate.link:
		return s.Rate.abs
	case s.OfLink():
		return s.Ingress.Rate.abs
	}
	return 0
}

// At is what a policy says of an interface whose line has a speed.
func (s *Spec) At(speed Bandwidth) *Spec {
	of := *s
	of.Rate = s.Rate.at(speed)
	if s.Ingress != nil {
		in := *s.Ingress
		in.Rate, of.Ingress = in.Rate.at(speed), &in
	}
	return &of
}

// Of is the bandwidth that a means below a parent of the given bandwidth,
// rounded down to a bit per second.
func (a Amount) Of(parent Bandwidth) Bandwidth {
	if a.milli == 0 {
		return a.abs
	}
	if a.link {
		parent = a.abs
	}
	// MaxBandwidth × 100,000 passes 2^64, so divide first and mend the rest.
	m := Bandwidth(a.milli)
	return parent/100_000*m + parent%100_000*m/100_000
}

// String prints the amount as it is written, "10mbit", "12.5%", "95% of link", and behind a
// share of the line what that carries where it is known: "95% of link (1gbit)".
func (a Amount) String() string {
	if a.milli == 0 {
		return a.abs.String()
	}
	s := fmt.Sprintf("%d.%03d", a.milli/1000, a.milli%1000)
	s = strings.TrimRight(strings.TrimRight(s, "0"), ".") + "%"
	if !a.link {
		return s
	}
	if s += " of link"; a.milli == 100_000 {
		s = "link"
	}
	if a.abs != 0 {
		s += fmt.Sprintf(" (%v)", a.abs)
	}
	return s
}

// MarshalText implements encoding.TextMarshaler with the form of String, empty
// where nothing was written.
func (a Amount) MarshalText() ([]byte, error) {
	if a.IsZero() {
		return nil, nil
	}
	return []byte(a.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler for what MarshalText has written.
func (a *Amount) UnmarshalText(t []byte) error {
	if len(t) == 0 {
		*a = Amount{}
		return nil
	}
	share, speed, known := strings.Cut(strings.TrimSuffix(string(t), ")"), " (")
	v, err := ParseLine(share)
	if err == nil && known {
		var b Bandwidth
		b, err = ParseBandwidth(speed)
		v = v.at(b)
	}
	if err == nil {
		*a = v
	}
	return err
}
