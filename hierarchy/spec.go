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

// Amount is a bandwidth, or a percentage of the parent's. The zero value means
// "not written".
type Amount struct {
	abs   Bandwidth
	milli uint32 // thousandths of a percent
}

// Absolute is the amount that is b everywhere; b is at most [MaxBandwidth].
func Absolute(b Bandwidth) Amount { return Amount{abs: b} }

// ParseAmount reads a bandwidth (see [ParseBandwidth]) or a percentage above 0
// and up to 100 with at most three digits behind the point: "40%", "12.5%".
func ParseAmount(s string) (Amount, error) {
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
		return Amount{}, fmt.Errorf("%q is not between 0.001%% and 100%%", s)
	}
	return Amount{milli: uint32(m)}, nil
}

// IsZero says whether nothing was written.
func (a Amount) IsZero() bool { return a == Amount{} }

// Percent says whether the amount depends on the parent's.
func (a Amount) Percent() bool { return a.milli != 0 }

// Of is the bandwidth that a means below a parent of the given bandwidth,
// rounded down to a bit per second.
func (a Amount) Of(parent Bandwidth) Bandwidth {
	if a.milli == 0 {
		return a.abs
	}
	// MaxBandwidth × 100,000 passes 2^64, so divide first and mend the rest.
	m := Bandwidth(a.milli)
	return parent/100_000*m + parent%100_000*m/100_000
}

// String prints the amount as it is written: "10mbit", "12.5%".
func (a Amount) String() string {
	if a.milli == 0 {
		return a.abs.String()
	}
	s := fmt.Sprintf("%d.%03d", a.milli/1000, a.milli%1000)
	return strings.TrimRight(strings.TrimRight(s, "0"), ".") + "%"
}

// MarshalText implements encoding.TextMarshaler with the form of String, empty
// where nothing was written.
func (a Amount) MarshalText() ([]byte, error) {
	if a.IsZero() {
		return nil, nil
	}
	return []byte(a.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler with ParseAmount.
func (a *Amount) UnmarshalText(t []byte) error {
	if len(t) == 0 {
		*a = Amount{}
		return nil
	}
	v, err := ParseAmount(string(t))
	if err == nil {
		*a = v
	}
	return err
}
