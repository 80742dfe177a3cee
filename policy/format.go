package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/hierarchy/match"
)

// Note is a comment that [Format] writes.
type Note struct {
	Path hierarchy.Path // of the interface or branch; empty: the top of the file
	Key  string         // beside which it stands, as in a [hierarchy.Problem], or above which; empty: above the table
	Text string         // without "#"; may have several lines
	// Below says that it stands below the keys of the table, where an Off may stand behind
	// or under it: a line of the table that is not in force. That begins with "#" and no
	// space, as no other comment does: who takes the "#" away has it in force.
	Below bool
	Off   string // one line of TOML, with Below alone; empty: none
}

// formatWidth is how long a line of [Format] may become before what can stand on several does.
const formatWidth = 110

// Format is the text of a policy that says what the specifications say: [Parse] reads the
// same from it. Binding is left out where it is empty or "auto". A note on a key that is not
// written stands by itself in its table, and so do those on a branch that is not there, at
// the end of the file: none is lost.
func Format(binding string, specs []*hierarchy.Spec, notes []Note) string {
	f := formatter{notes: slices.Clone(notes)}
	f.above(f.take("", ""))
	f.line(`version = 1`)
	if binding != "" && binding != "auto" {
		f.line("binding = " + quoted(binding))
	}
	for _, s := range specs {
		s = s.At(0) // a policy does not say how fast a link is of which it says a share
		f.table(hierarchy.Path(s.Interface), []string{"interface", s.Interface}, &s.BranchSpec, s)
	}
	if len(f.notes) > 0 {
		f.line("")
		for _, n := range f.notes {
			f.above([]string{strings.TrimPrefix(string(n.Path)+": "+n.Text, ": ")})
		}
	}
	return f.b.String()
}

type formatter struct {
	b     strings.Builder
	notes []Note // that are not written yet
}

func (f *formatter) line(s string) { f.b.WriteString(s + "\n") }

// take are the texts for a place, which are written now.
func (f *formatter) take(p hierarchy.Path, key string) (texts []string) {
	f.notes = slices.DeleteFunc(f.notes, func(n Note) bool {
		here := n.Path == p && n.Key == key && !n.Below
		if here {
			texts = append(texts, n.Text)
		}
		return here
	})
	return texts
}

// above writes comments on lines of their own, broken where they are long.
func (f *formatter) above(texts []string) {
	for _, t := range texts {
		for l := range strings.SplitSeq(strings.TrimSuffix(t, "\n"), "\n") {
			line := "#"
			for i, word := range strings.Split(strings.Map(printable, l), " ") {
				if i > 0 && len(line)+len(word) >= formatWidth {
					f.line(line)
					line = "#  "
				}
				line += " " + word
			}
			f.line(strings.TrimRight(line, " "))
		}
	}
}

// table writes a branch and those below it; s is not nil for an interface.
func (f *formatter) table(p hierarchy.Path, name []string, b *hierarchy.BranchSpec, s *hierarchy.Spec) {
	f.line("")
	f.above(f.take(p, ""))
	keys := make([]string, len(name))
	for i, n := range name {
		keys[i] = bareOrQuoted(n)
	}
	f.line("[" + strings.Join(keys, ".") + "]")
	entries := numbers(b)
	if s != nil {
		entries = append(entries, ofInterface(s)...)
	}
	if b.Ingress != nil {
		entries = append(entries, written{"ingress", ingress(b.Ingress, s)})
	}
	entries = append(entries, of(b)...)
	for _, e := range entries {
		f.entry(p, e)
	}
	for i := 0; i < len(f.notes); { // on keys that are not written, and those below all
		n := f.notes[i]
		switch {
		case n.Path != p:
			i++
			continue
		case n.Below:
			f.below(n)
		default:
			f.above([]string{n.Key + ": " + n.Text})
		}
		f.notes = slices.Delete(f.notes, i, i+1)
	}
	for _, c := range b.Children {
		f.table(p.Join(c.Name), append(slices.Clip(name), c.Name), c, nil)
	}
}

// written is a key with its value as the file has it.
type written struct{ key, value string }

// entry writes a key, with a short note behind it and others above.
func (f *formatter) entry(p hierarchy.Path, e written) {
	notes := f.take(p, e.key)
	text := e.key + " = " + e.value
	if len(notes) == 1 && !strings.Contains(notes[0]+e.value, "\n") && len(text)+len(notes[0])+4 <= formatWidth {
		f.line(text + "  # " + strings.Map(printable, notes[0]))
		return
	}
	f.above(notes)
	f.line(text)
}

// below writes a note below the keys of its table; one without a line of TOML heads those
// that follow.
func (f *formatter) below(n Note) {
	switch text := "#" + n.Off; {
	case n.Off == "":
		f.line("")
		f.above([]string{n.Text})
	case n.Text == "":
		f.line(text)
	case !strings.Contains(n.Text, "\n") && len(text)+len(n.Text)+4 <= formatWidth:
		f.line(text + "  # " + strings.Map(printable, n.Text))
	default:
		f.above([]string{n.Text})
		f.line(text)
	}
}

// Keys are what a branch says, without what it receives, each key as its table has it, for a
// [Note]: a line each where it has one binding and one match at most.
func Keys(b *hierarchy.BranchSpec) (lines []string) {
	for _, e := range append(numbers(b), of(b)...) {
		lines = append(lines, e.key+" = "+e.value)
	}
	return lines
}

// Inline is a branch as a key of the table that it lies below, with its [Keys] and no
// branches.
func Inline(b *hierarchy.BranchSpec) string {
	return bareOrQuoted(b.Name) + " = { " + strings.Join(Keys(b), ", ") + " }"
}

// ofInterface are the keys that only an interface has.
func ofInterface(s *hierarchy.Spec) (all []written) {
	add := adder(&all)
	add("linklayer", s.Line.Layer != "", quoted(s.Line.Layer))
	add("overhead", s.Line.Overhead != 0, fmt.Sprint(s.Line.Overhead))
	add("mpu", s.Line.MPU != 0, quoted(s.Line.MPU.String()))
	add("mtu", s.MTU != 0, quoted(s.MTU.String()))
	add("replace", s.Replace, "true")
	return all
}

// numbers are the keys that a branch has for each direction.
func numbers(b *hierarchy.BranchSpec) (all []written) {
	add := adder(&all)
	add("rate", !b.Rate.IsZero(), quoted(b.Rate.String()))
	add("ceil", !b.Ceil.IsZero(), quoted(b.Ceil.String()))
	if b.Prio != nil {
		add("prio", true, fmt.Sprint(*b.Prio))
	}
	add("burst", b.Burst != 0, quoted(b.Burst.String()))
	add("cburst", b.CBurst != 0, quoted(b.CBurst.String()))
	add("quantum", b.Quantum != 0, quoted(b.Quantum.String()))
	if b.Qdisc != nil {
		add("qdisc", true, rawQdisc(b.Qdisc))
	}
	return all
}

func adder(all *[]written) func(key string, is bool, value string) {
	return func(key string, is bool, value string) {
		if is {
			*all = append(*all, written{key, value})
		}
	}
}

// ingress is what holds for receiving; s is not nil for an interface.
func ingress(b *hierarchy.BranchSpec, s *hierarchy.Spec) string {
	entries := numbers(b)
	if s != nil && s.Flows != 0 {
		entries = append(entries, written{"flows", fmt.Sprint(s.Flows)})
	}
	if len(entries) == 1 && entries[0].key == "rate" {
		return entries[0].value
	}
	return inline(entries)
}

// of are the keys of a branch that hold for both directions.
func of(b *hierarchy.BranchSpec) (all []written) {
	add := adder(&all)
	pods := texts(b.Pods, func(p bind.Pods) string { return quoted(string(p)) })
	var bound []string
	for _, x := range b.Bind {
		if x.Kind == bind.Pod { // of a limit
			pods = append(pods, quoted(x.Name))
		} else {
			bound = append(bound, quoted(x.String()))
		}
	}
	add("bind", len(bound) > 0, broken("bind", bound))
	add("pods", len(pods) > 0, broken("pods", pods))
	add("delegate", len(b.Delegate) > 0, broken("delegate", texts(b.Delegate, func(d bind.Delegate) string { return quoted(string(d)) })))
	add("renamed_from", b.RenamedFrom != "", quoted(b.RenamedFrom))
	add("match", len(b.Match) > 0, broken("match", texts(b.Match, match.Match.Text)))
	return all
}

// texts are the elements of a list.
func texts[T any](of []T, text func(T) string) []string {
	all := make([]string, len(of))
	for i, x := range of {
		all[i] = text(x)
	}
	return all
}

// broken is a list, on one line where it fits there.
func broken(key string, elements []string) string {
	s := "[" + strings.Join(elements, ", ") + "]"
	if len(key)+len(s)+3 <= formatWidth || len(elements) == 1 {
		return s
	}
	return "[\n  " + strings.Join(elements, ",\n  ") + ",\n]"
}

// inline is a table on one line.
func inline(entries []written) string {
	if len(entries) == 0 {
		return "{}"
	}
	all := make([]string, len(entries))
	for i, e := range entries {
		all[i] = e.key + " = " + e.value
	}
	return "{ " + strings.Join(all, ", ") + " }"
}

func rawQdisc(q *hierarchy.RawQdisc) string {
	if len(q.Params) == 0 {
		return quoted(q.Kind)
	}
	entries := []written{{"kind", quoted(q.Kind)}}
	for _, p := range q.Params {
		v := p.Text
		if p.Quoted {
			v = quoted(v)
		}
		entries = append(entries, written{bareOrQuoted(p.Name), v})
	}
	return inline(entries)
}

// bareOrQuoted is a part of a key.
func bareOrQuoted(s string) string {
	bare := s != "" && !strings.ContainsFunc(s, func(c rune) bool {
		return c != '_' && c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
	})
	if bare {
		return s
	}
	return quoted(s)
}

// quoted is a string of TOML: in single quotes, which know no escapes, where it has a
// backslash and can stand in them.
func quoted(s string) string {
	control := func(c rune) bool { return c < ' ' || c == 0x7f }
	if strings.Contains(s, `\`) && !strings.Contains(s, "'") && !strings.ContainsFunc(s, control) {
		return "'" + s + "'"
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteRune(c)
		case control(c):
			fmt.Fprintf(&b, `\u%04x`, c)
		default:
			b.WriteRune(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}
