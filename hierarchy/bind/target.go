package bind

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// TargetKind says what a target is.
type TargetKind uint8

// The kinds of targets, in the order of their words.
const (
	TargetNone      TargetKind = iota // nothing
	TargetCgroupID                    // a cgroup that no longer exists
	TargetCgroup                      // a cgroup
	TargetLinkIndex                   // an interface that no longer exists
	TargetLink                        // an interface
	TargetUser                        // a user
)

var targetKinds = [...]string{"", "cgroup-id", "cgroup", "link-index", "link", "uid"}

// String is the word in front of the colon.
func (k TargetKind) String() string {
	if int(k) < len(targetKinds) {
		return targetKinds[k]
	}
	return "unknown"
}

// Target is what a binding comes to on one machine, as the kernel knows it. The zero
// value is nothing.
type Target struct {
	Kind TargetKind
	Name string // of a cgroup its path below the mount of its hierarchy, of an interface its name
	ID   uint64 // of a user, and of what no longer exists
}

// ToCgroup is the target of a cgroup, by its path below the mount of its hierarchy.
func ToCgroup(path string) Target { return Target{Kind: TargetCgroup, Name: path} }

// ToCgroupID is the target of a cgroup that no longer exists.
func ToCgroupID(id uint64) Target { return Target{Kind: TargetCgroupID, ID: id} }

// ToUser is the target of a user.
func ToUser(uid uint32) Target { return Target{Kind: TargetUser, ID: uint64(uid)} }

// ToLink is the target of an interface.
func ToLink(name string) Target { return Target{Kind: TargetLink, Name: name} }

// ToLinkIndex is the target of an interface that no longer exists.
func ToLinkIndex(index uint32) Target { return Target{Kind: TargetLinkIndex, ID: uint64(index)} }

// ParseTarget reads "cgroup:/system.slice", "cgroup-id:4711", "uid:1000", "link:veth1"
// or "link-index:12". Nothing is the zero Target.
func ParseTarget(s string) (Target, error) {
	if s == "" {
		return Target{}, nil
	}
	word, rest, _ := strings.Cut(s, ":")
	for i, w := range targetKinds {
		if i == 0 || w != word || rest == "" {
			continue
		}
		t := Target{Kind: TargetKind(i)}
		bits := 32
		switch t.Kind {
		case TargetCgroup, TargetLink:
			t.Name = rest
			return t, nil
		case TargetCgroupID:
			bits = 64
		}
		id, err := strconv.ParseUint(rest, 10, bits)
		if err != nil {
			return Target{}, fmt.Errorf("%q: the number of a %s is from 0 to %d", s, word, uint64(1)<<bits-1)
		}
		t.ID = id
		return t, nil
	}
	return Target{}, fmt.Errorf("%q is none of cgroup:/PATH, cgroup-id:N, uid:N, link:NAME, link-index:N", s)
}

// String prints the target as [ParseTarget] reads it.
func (t Target) String() string { return string(t.append(nil)) }

func (t Target) append(b []byte) []byte {
	if t.Kind == TargetNone {
		return b
	}
	b = append(append(b, t.Kind.String()...), ':')
	if t.named() {
		return append(b, t.Name...)
	}
	return strconv.AppendUint(b, t.ID, 10)
}

// named says whether the target has a name; else it has a number.
func (t Target) named() bool { return t.Kind == TargetCgroup || t.Kind == TargetLink }

// Compare orders targets as their texts are ordered.
func (t Target) Compare(o Target) int {
	if t.Kind != o.Kind || t.named() {
		return cmp.Or(cmp.Compare(t.Kind, o.Kind), cmp.Compare(t.Name, o.Name))
	}
	var a, b [20]byte
	return cmp.Compare(string(strconv.AppendUint(a[:0], t.ID, 10)), string(strconv.AppendUint(b[:0], o.ID, 10)))
}

// MarshalText implements encoding.TextMarshaler with the form of String.
func (t Target) MarshalText() ([]byte, error) { return t.append(nil), nil }

// UnmarshalText implements encoding.TextUnmarshaler with ParseTarget.
func (t *Target) UnmarshalText(b []byte) error {
	v, err := ParseTarget(string(b))
	if err == nil {
		*t = v
	}
	return err
}
