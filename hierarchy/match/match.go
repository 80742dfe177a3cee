package match

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
)

// Match is packets of one kind. All keys that are there must hold, each for one of its
// values. From, To, SPort and DPort are as the packet has them on the wire, whichever way
// it goes; Host turns with the direction, and with it there the address of our side is, for
// From and To as well, the one that it has before translation. The zero value is no match.
type Match struct {
	From  []netip.Prefix `json:"from,omitempty"`  // the sender's address
	To    []netip.Prefix `json:"to,omitempty"`    // the receiver's
	Host  []netip.Prefix `json:"host,omitempty"`  // the one on our side before translation: the sender's of what is sent, the receiver's of what is received
	MAC   []MAC          `json:"mac,omitempty"`   // on either side
	Proto []Proto        `json:"proto,omitempty"` // what IP carries
	Port  []Ports        `json:"port,omitempty"`  // on either side
	SPort []Ports        `json:"sport,omitempty"` // the sender's
	DPort []Ports        `json:"dport,omitempty"` // the receiver's
	DSCP  []DSCP         `json:"dscp,omitempty"`
	Mark  []Mark         `json:"mark,omitempty"` // the firewall mark, skb->mark
	VLAN  []VLAN         `json:"vlan,omitempty"`
}

// keys are the names of the keys, in the order of the fields.
var keys = [...]string{"from", "to", "host", "mac", "proto", "port", "sport", "dport", "dscp", "mark", "vlan"}

// Keys are the names of all keys.
func Keys() []string { return keys[:] }

// maxPairs bounds the pairs of a sender's and a receiver's prefix that one match has: each
// is looked for by itself.
const maxPairs = 1 << 16

// Add reads one value of a key and adds it to those that the key has.
func (m *Match) Add(key, value string) (err error) {
	switch {
	case strings.HasPrefix(value, "!"):
		return fmt.Errorf("%q: a match has no \"not\": give what is excepted a more specific match in a branch of its own", value)
	case strings.Contains(value, ","):
		return fmt.Errorf("%q has a comma: write a list, %s = [%s]", value, key, quoted(strings.Split(value, ",")))
	}
	switch key {
	case "from":
		m.From, err = add(m.From, value, parsePrefix)
	case "to":
		m.To, err = add(m.To, value, parsePrefix)
	case "host":
		m.Host, err = add(m.Host, value, parsePrefix)
	case "mac":
		m.MAC, err = add(m.MAC, value, parseMAC)
	case "proto":
		m.Proto, err = add(m.Proto, value, parseProto)
	case "port":
		m.Port, err = add(m.Port, value, parsePorts)
	case "sport":
		m.SPort, err = add(m.SPort, value, parsePorts)
	case "dport":
		m.DPort, err = add(m.DPort, value, parsePorts)
	case "dscp":
		m.DSCP, err = add(m.DSCP, value, parseDSCP)
	case "mark":
		m.Mark, err = add(m.Mark, value, parseMark)
	case "vlan":
		m.VLAN, err = add(m.VLAN, value, parseVLAN)
	default:
		return fmt.Errorf("a match has no key %q: known are %s", key, strings.Join(keys[:], ", "))
	}
	return err
}

func add[T any](to []T, value string, parse func(string) (T, error)) ([]T, error) {
	v, err := parse(value)
	if err != nil {
		return to, err
	}
	return append(to, v), nil
}

func quoted(all []string) string {
	q := make([]string, len(all))
	for i, s := range all {
		q[i] = fmt.Sprintf("%q", strings.TrimSpace(s))
	}
	return strings.Join(q, ", ")
}

// Check says what is wrong with a match of which each value is right: of which key, in
// which words, and what to do. An empty text: nothing is; an empty key: it is all of it.
func (m *Match) Check() (key, text, hint string) {
	if m.count() == 0 {
		return "", "a match without a key would fit every packet", "write a key, or leave the match out: what no match fits stays with the branch above"
	}
	if n := max(len(m.From), 1) * max(len(m.To), 1) * max(len(m.Host), 1); n > maxPairs {
		return "", fmt.Sprintf("a match with %d combinations of addresses; it has at most %d", n, maxPairs), "leave one of its lists of addresses out, or join prefixes to shorter ones"
	}
	ends := []struct {
		key string
		of  int
	}{{"from", families(m.From)}, {"to", families(m.To)}, {"host", families(m.Host)}}
	for i, x := range ends {
		for _, y := range ends[:i] {
			if x.of&y.of == 0 {
				return x.key, fmt.Sprintf("%s is of %s, and %s of %s: no packet has both", x.key, familyNames[x.of], y.key, familyNames[y.of]), "write a match for each family"
			}
		}
	}
	if len(m.Host) > 0 && len(m.From) > 0 && len(m.To) > 0 && len(narrow(m.From, m.Host)) == 0 && len(narrow(m.To, m.Host)) == 0 {
		return "host", "host lies neither in from nor in to, and no packet has all three", "leave one out: beside host, from and to mean the address of our side before translation, too"
	}
	if len(m.Proto) == 0 || slices.ContainsFunc(m.Proto, Proto.Ported) {
		return "", "", ""
	}
	for _, x := range []struct {
		key string
		of  []Ports
	}{{"port", m.Port}, {"sport", m.SPort}, {"dport", m.DPort}} {
		if len(x.of) > 0 {
			return x.key, fmt.Sprintf("%s with proto %v, which has no ports", x.key, m.Proto[0]), "leave one of the two out, or write " + portedNames
		}
	}
	return "", "", ""
}

// count is the number of keys.
func (m *Match) count() int {
	n := 0
	for _, values := range []int{len(m.From), len(m.To), len(m.Host), len(m.MAC), len(m.Proto), len(m.Port), len(m.SPort), len(m.DPort), len(m.DSCP), len(m.Mark), len(m.VLAN)} {
		if values > 0 {
			n++
		}
	}
	return n
}

// Families of addresses.
const (
	v4 = 1 << iota
	v6
)

var familyNames = [...]string{v4: "IPv4", v6: "IPv6"}

func family(a netip.Addr) int {
	if a.Is4() {
		return v4
	}
	return v6
}

// families are those of a key's prefixes, both where it has none.
func families(of []netip.Prefix) int {
	if len(of) == 0 {
		return v4 | v6
	}
	f := 0
	for _, p := range of {
		f |= family(p.Addr())
	}
	return f
}

// String prints the match as a policy has it, { to = "10.0.0.0/8", dport = [80, 443] }, but
// of many values of a key only the first.
func (m Match) String() string { return m.text(few) }

// Text is the match as a policy has it, with all values of each key.
func (m Match) Text() string { return m.text(math.MaxInt) }

func (m Match) text(most int) string {
	var b strings.Builder
	write(&b, "from", m.From, prefixText, most)
	write(&b, "to", m.To, prefixText, most)
	write(&b, "host", m.Host, prefixText, most)
	write(&b, "mac", m.MAC, MAC.String, most)
	write(&b, "proto", m.Proto, Proto.String, most)
	write(&b, "port", m.Port, Ports.String, most)
	write(&b, "sport", m.SPort, Ports.String, most)
	write(&b, "dport", m.DPort, Ports.String, most)
	write(&b, "dscp", m.DSCP, DSCP.String, most)
	write(&b, "mark", m.Mark, Mark.String, most)
	write(&b, "vlan", m.VLAN, VLAN.String, most)
	if b.Len() == 0 {
		return "{}"
	}
	return "{ " + b.String() + " }"
}

// few is how many values of a key are printed before the others are only counted; a
// sentence has no room for thousands.
const few = 8

func write[T any](b *strings.Builder, key string, values []T, text func(T) string, most int) {
	if len(values) == 0 {
		return
	}
	if b.Len() > 0 {
		b.WriteString(", ")
	}
	b.WriteString(key + " = ")
	if len(values) > 1 {
		b.WriteByte('[')
	}
	for i, v := range values {
		if i > 0 {
			b.WriteString(", ")
		}
		if i == most && len(values)-most > 1 {
			fmt.Fprintf(b, "... %d more", len(values)-most)
			break
		}
		if s := text(v); strings.Trim(s, "0123456789") == "" {
			b.WriteString(s)
		} else {
			b.WriteString(`"` + s + `"`)
		}
	}
	if len(values) > 1 {
		b.WriteByte(']')
	}
}
