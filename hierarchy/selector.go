package hierarchy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Selector says of which interfaces a table of a policy is: of the one with that name
// ("eth0"), also where that is an alternative name of it; of all that a [bind.Pattern] fits
// ("wlp*"); or of the one with a hardware address
// ("mac=52:54:00:12:34:56"), whatever it is called; or of that by which the default route goes,
// [DefaultRoute]. The loopback interface is fitted by its name alone.
type Selector string

// DefaultRoute is the selector of the interface by which packets leave that no other route is
// for. One that is called so is not fitted by it, unless it is that: who means it writes its
// address, or a pattern.
const DefaultRoute Selector = "default-route"

// Identity is what an interface is known by.
type Identity struct {
	Name     string
	AltNames []string
	MAC      string // hardware address as text in lower case; empty: none of its own
	Uplink   bool   // the default route goes by it
}

// Fit is how well a selector fits an interface: the best one has it. 0: not at all; a pattern
// fits the better the more characters of it stand for themselves.
type Fit int

// Fits that are better than that of any pattern, each better than the one before.
const (
	FitDefaultRoute Fit = iota + 1000
	FitMAC
	FitAltName
	FitName
)

// macPrefix is what a selector by hardware address begins with.
const macPrefix = "mac="

// mac is the hardware address of a selector by one.
func (s Selector) mac() (string, bool) {
	mac, ok := strings.CutPrefix(string(s), macPrefix)
	return strings.ToLower(mac), ok
}

// Plain says whether a selector is a name.
func (s Selector) Plain() bool {
	return s != DefaultRoute && !strings.HasPrefix(string(s), macPrefix) && bind.Pattern(s).Exact()
}

// Fit is how well the selector fits an interface.
func (s Selector) Fit(n Identity) Fit {
	if s == DefaultRoute {
		if n.Uplink && n.Name != "lo" {
			return FitDefaultRoute
		}
		return 0
	}
	if string(s) == n.Name {
		return FitName
	}
	if mac, ok := s.mac(); ok {
		if mac == n.MAC && mac != "" {
			return FitMAC
		}
		return 0
	}
	if slices.Contains(n.AltNames, string(s)) {
		return FitAltName
	}
	if p := bind.Pattern(s); !p.Exact() && n.Name != "lo" && (p.Match(n.Name) || slices.ContainsFunc(n.AltNames, p.Match)) {
		return Fit(1 + p.Literals())
	}
	return 0
}

// maxAltName is the longest alternative name of an interface, in bytes: ALTIFNAMSIZ of
// linux/if.h less the zero at its end.
const maxAltName = 127

// check says what is wrong with a selector, and what to write instead: what the kernel would
// never have as a name (dev_valid_name, net/core/dev.c, v6.12). Empty: nothing.
func (s Selector) check() (text, hint string) {
	name := string(s)
	if mac, ok := s.mac(); ok {
		if !validMAC(mac) {
			return fmt.Sprintf("%q has no hardware address", name), `write six bytes, as in "mac=52:54:00:12:34:56"`
		}
		return "", ""
	}
	what := "its name"
	if !s.Plain() {
		if err := bind.Pattern(s).Check(); err != nil {
			return fmt.Sprintf("%q is no pattern of interfaces", name), err.Error()
		}
		what = "what it fits"
	}
	switch {
	case name == "":
		return "an interface without a name", ""
	case name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n\v\f\r"):
		hint := ""
		if strings.EqualFold(strings.Join(strings.Fields(name), "-"), string(DefaultRoute)) {
			hint = fmt.Sprintf("the interface of the default route is written %q", DefaultRoute)
		}
		return fmt.Sprintf("%q cannot be an interface: %s has no slash, colon or space", name, what), hint
	case strings.IndexByte(name, 0xa0) >= 0:
		return fmt.Sprintf("%q cannot be an interface: the kernel takes its byte 0xa0 for a space", name), ""
	case len(name) > maxAltName:
		return fmt.Sprintf("%q cannot be an interface: a name has at most %d bytes, an alternative one %d, and this one has %d", name, maxName, maxAltName, len(name)), ""
	}
	return "", ""
}

// validMAC says whether a text is six bytes, or twenty as of InfiniBand.
func validMAC(s string) bool {
	parts := strings.Split(s, ":")
	return (len(parts) == 6 || len(parts) == 20) && !slices.ContainsFunc(parts, func(p string) bool {
		return len(p) != 2 || strings.Trim(p, "0123456789abcdef") != ""
	})
}

// For is what a policy says of an interface that its selector fits. Former paths of branches
// are below the selector where they are written, too.
func (s *Spec) For(iface string) *Spec {
	of := *s
	of.Interface = iface
	of.Children = renamedBelow(s.Children, s.Interface+"/", iface+"/")
	return &of
}

func renamedBelow(all []*BranchSpec, selector, iface string) []*BranchSpec {
	below := slices.Clone(all)
	for i, b := range below {
		c := *b
		if from, ok := strings.CutPrefix(c.RenamedFrom, selector); ok {
			c.RenamedFrom = iface + from
		}
		c.Children = renamedBelow(c.Children, selector, iface)
		below[i] = &c
	}
	return below
}
