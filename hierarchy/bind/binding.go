package bind

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Kind says what a binding names.
type Kind uint8

// The kinds of bindings.
const (
	Cgroup    Kind = iota // a cgroup by its path below the cgroup mount
	Unit                  // a systemd unit
	Slice                 // a systemd slice
	User                  // a user by name or number
	Link                  // an interface: what it brings in and this one sends on
	Container             // a container by name, by id, or by at least 12 digits that its id begins with
	Pod                   // pods of Kubernetes, see [Pods]
)

var kinds = [...]string{"cgroup", "unit", "slice", "user", "link", "container", "pod"}

// String is the word in front of the colon.
func (k Kind) String() string {
	if int(k) < len(kinds) {
		return kinds[k]
	}
	return "unknown"
}

// Kinds are the words of all kinds.
func Kinds() []string { return slices.Clone(kinds[:]) }

// KindError is what stands where a binding should, with a kind that there is not.
type KindError struct {
	Kind, Name string // before and behind the colon
}

// Error implements error, with the form of every kind that there is.
func (e *KindError) Error() string {
	return fmt.Sprintf("binding %q is of unknown kind %q: write %s", e.Kind+":"+e.Name, e.Kind, forms())
}

// forms are how bindings of each kind are written, but for pods, which have a key of their own in policies.
func forms() string {
	return fmt.Sprintf("%s, %s, %s, %s, %s or %s", Unit.form(), Slice.form(), Cgroup.form(), User.form(), Link.form(), Container.form())
}

// form is how a binding of the kind is written.
func (k Kind) form() string {
	return strconv.Quote(k.String() + ":" + [...]string{"/PATH", "NAME.service", "NAME.slice", "NAME", "INTERFACE", "NAME", "NAMESPACE/NAME"}[k])
}

// empty are the endings of units that never have processes (systemd.unit(5), systemd 257).
var empty = []string{".timer", ".target", ".path", ".device"}

// Binding puts what it names into a branch. A cgroup carries its descendants
// with it, except those that a deeper binding claims; a user's binding holds
// for sockets that no cgroup's binding claims. An interface's binding holds for
// packets that came in by it, but for those of a bound cgroup. A container is
// both: its cgroup, and the interfaces by which its network namespace is connected. So is a
// pod, with all its containers; of several bindings that have it, it belongs to one alone.
//
// The names of units and slices, and each part of a cgroup's path, may be a
// [Pattern]: then the binding is to everything that it matches. A cgroup that
// several bindings name belongs to the one that names it exactly, else to the one
// with the most characters that are no pattern.
type Binding struct {
	Kind Kind
	Name string
}

// Pattern is a name, or the names of many where it holds one of * ? [. As with
// systemctl, * stands for any characters, ? for any one, [a-c] for one of these and
// [^a-c] for any other one, and a backslash for itself.
type Pattern string

// Exact says whether the pattern is a single name.
func (p Pattern) Exact() bool { return !strings.ContainsAny(string(p), "*?[") }

// Match says whether the pattern stands for a name. One that [Parse] would
// refuse stands for none.
func (p Pattern) Match(name string) bool {
	ok, err := p.match(name)
	return ok && err == nil
}

func (p Pattern) match(name string) (bool, error) {
	return path.Match(strings.ReplaceAll(string(p), `\`, `\\`), name)
}

// Literals is the number of bytes that stand for themselves: the more, the more
// exact the pattern.
func (p Pattern) Literals() int {
	n, class := 0, false
	for _, c := range []byte(p) {
		switch {
		case class:
			class = c != ']'
		case c == '[':
			class = true
		case c != '*' && c != '?':
			n++
		}
	}
	return n
}

// Check says what is wrong with a pattern, and what to write instead.
func (p Pattern) Check() error {
	switch _, err := p.match(""); {
	case strings.Contains(string(p), "**"):
		return errors.New("** is no pattern: write *, which stands for a part of one name; what lies below comes with it")
	case strings.Contains(string(p), "[!"):
		return errors.New("write [^ instead of [! for any other character")
	case err != nil:
		return errors.New("a [ opens a list of characters as in [a-c], and must be closed; write [[] for the bracket itself")
	}
	return nil
}

// Parse reads "cgroup:/kubepods.slice", "unit:nginx.service",
// "slice:build.slice", "user:backup", "link:veth1", "container:web" or "pod:shop/web-1", and the
// patterns that [Binding] tells of.
func Parse(s string) (Binding, error) {
	kind, name, ok := strings.Cut(s, ":")
	if !ok {
		return Binding{}, fmt.Errorf("binding %q does not say what it names: write %s", s, forms())
	}
	for i, k := range kinds {
		if k != kind {
			continue
		}
		b := Binding{Kind(i), name}
		if err := b.check(s); err != nil {
			return Binding{}, err
		}
		return b, nil
	}
	switch kind {
	case "group", "gid":
		return Binding{}, fmt.Errorf("binding %q: groups cannot be bound: write a binding for each user, \"user:NAME\"", s)
	case "uid":
		return Binding{}, fmt.Errorf("binding %q: a user is bound by name or number: write \"user:%s\"", s, name)
	case "pid":
		return Binding{}, fmt.Errorf("binding %q: a process is bound while it runs, not by a binding: write `vifshape attach BRANCH %[2]s`, or `vifshape limit pid:%[2]s` for a limit alone", s, name)
	case "docker", "podman":
		return Binding{}, fmt.Errorf("binding %q: containers are bound alike, whatever runs them: write \"container:%s\"", s, name)
	case "systemd", "service":
		if !strings.Contains(name, ".") {
			name += ".service"
		}
		return Binding{}, fmt.Errorf("binding %q: what systemd runs is bound as a unit: write \"unit:%s\"", s, name)
	}
	return Binding{}, &KindError{kind, name}
}

func (b Binding) check(s string) error {
	switch {
	case b.Name == "":
		return fmt.Errorf("binding %q names nothing behind the colon: write %s", s, b.Kind.form())
	case len(b.Name) > 4096 || strings.ContainsFunc(b.Name, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("binding %q has a control character or more than 4096 bytes", s)
	case strings.TrimSpace(b.Name) != b.Name || b.Kind != Cgroup && strings.Contains(b.Name, " "):
		return fmt.Errorf("binding %q has a space where none can be", s)
	case b.Kind == Cgroup && b.Name[0] != '/':
		return fmt.Errorf("binding %q: a cgroup is named from the root of its hierarchy: write \"cgroup:/%s\"", s, b.Name)
	case b.Kind == Cgroup && (b.Name == "/" || strings.Contains(b.Name+"/", "/../") || strings.Contains(b.Name+"/", "/./") || strings.Contains(b.Name, "//") || strings.HasSuffix(b.Name, "/")):
		return fmt.Errorf("binding %q: a cgroup's path has no empty, \".\" or \"..\" part, no slash at its end, and is not the root, which the rest already stands for", s)
	case b.Kind == Pod:
		if err := podsError(b.Name); err != nil {
			return fmt.Errorf("binding %q: %w", s, err)
		}
	case b.Kind != Cgroup && strings.Contains(b.Name, "/"):
		return fmt.Errorf("binding %q: a %s's name has no slash", s, b.Kind)
	case b.Kind == Unit && strings.HasSuffix(b.Name, ".slice"):
		return fmt.Errorf("binding %q names a slice: write \"slice:%s\"", s, b.Name)
	case b.Kind == Unit && slices.Contains(empty, path.Ext(b.Name)):
		return fmt.Errorf("binding %q: a %s has no processes: write the unit that it starts, \"unit:%s.service\"", s, path.Ext(b.Name)[1:], strings.TrimSuffix(b.Name, path.Ext(b.Name)))
	case b.Kind == Unit && !strings.Contains(b.Name, "."):
		return fmt.Errorf("binding %q: a unit's name has an ending: write \"unit:%s.service\"", s, b.Name)
	case b.Kind == Slice && (strings.HasSuffix(b.Name, ".service") || strings.HasSuffix(b.Name, ".scope")):
		return fmt.Errorf("binding %q names no slice: write \"unit:%s\"", s, b.Name)
	case b.Kind == Slice && !strings.HasSuffix(b.Name, ".slice"):
		return fmt.Errorf("binding %q: a slice's name ends with .slice: write \"slice:%s.slice\"", s, b.Name)
	case b.Kind == Slice && b.Name == "-.slice":
		return fmt.Errorf("binding %q names the root slice, which the rest already stands for", s)
	case b.Kind == User && Pattern(b.Name).Exact():
		return b.checkUser(s)
	case b.Kind == Link && (b.Name == "." || b.Name == ".."):
		return fmt.Errorf("binding %q: no interface is called so", s)
	case b.Kind == Link && (len(b.Name) > 15 || strings.Contains(b.Name, ":")):
		return fmt.Errorf("binding %q: an interface's name has at most 15 bytes and no colon", s)
	case b.Kind == Container && Pattern(b.Name).Exact() && !containerName(b.Name):
		return fmt.Errorf("binding %q: a container's name or id has letters, digits and _ . - and begins with a letter or digit", s)
	case b.Kind == Cgroup || b.Kind == Unit || b.Kind == Slice:
		for part := range strings.SplitSeq(b.Name, "/") {
			if err := Pattern(part).Check(); err != nil {
				return fmt.Errorf("binding %q: %w", s, err)
			}
		}
	case b.Kind == User: // a pattern
		return fmt.Errorf("binding %q: users cannot be named by a pattern: write a binding for each, %s", s, logins)
	case !Pattern(b.Name).Exact():
		return fmt.Errorf("binding %q: only cgroups, units and slices can be named by a pattern: write a binding for each %s", s, b.Kind)
	}
	return nil
}

// checkUser refuses numbers that cannot be a user's, and a second spelling of one:
// two bindings of the same user would not look it. 4294967295 is what the kernel
// calls no user (INVALID_UID, include/linux/uidgid.h, v6.12).
func (b Binding) checkUser(s string) error {
	if first, last, ok := strings.Cut(b.Name, "-"); ok && number(first) && number(last) {
		return fmt.Errorf("binding %q: a binding is to one user: write one for each, \"user:%s\" and so on, %s", s, first, logins)
	}
	if first, _, ok := strings.Cut(b.Name, ","); ok {
		return fmt.Errorf("binding %q: a binding is to one user: write one for each, \"user:%s\" and so on", s, first)
	}
	digits := strings.TrimLeft(b.Name, "+-")
	if !number(digits) {
		if digits != b.Name {
			return fmt.Errorf("binding %q: a user's name begins with no sign: write \"user:NAME\" or \"user:NUMBER\"", s)
		}
		return nil
	}
	uid, err := strconv.ParseUint(b.Name, 10, 32)
	if err != nil || uid == 1<<32-1 {
		return fmt.Errorf("binding %q: a user's number is from 0 to 4294967294", s)
	}
	if plain := strconv.FormatUint(uid, 10); plain != b.Name {
		return fmt.Errorf("binding %q has a zero in front of the number: write \"user:%s\"", s, plain)
	}
	return nil
}

// logins is how users are named together.
const logins = `or "slice:user.slice" for all who log in, "slice:user-1*.slice" for those whose number begins with 1; for a share of its own each user takes a branch`

// number says whether s consists of digits.
func number(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// containerName says whether a container can be called so: what docker, podman and
// containerd take.
func containerName(s string) bool {
	for i, c := range []byte(s) {
		switch {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		case i > 0 && (c == '_' || c == '.' || c == '-'):
		default:
			return false
		}
	}
	return true
}

// String prints the binding as a policy has it.
func (b Binding) String() string { return b.Kind.String() + ":" + b.Name }

// MarshalText implements encoding.TextMarshaler with the form of String.
func (b Binding) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler with Parse.
func (b *Binding) UnmarshalText(t []byte) error {
	v, err := Parse(string(t))
	if err == nil {
		*b = v
	}
	return err
}
