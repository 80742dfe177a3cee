//go:build linux

package adopt

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/survey"
)

// ErrNothing says that nobody shapes the interface.
var ErrNothing = errors.New("nobody has set up traffic control there")

// ErrOurs says that the tree on the interface is vifshape's.
var ErrOurs = errors.New("its tree is vifshape's own")

// Policy is the text of a policy that has what stands on the interface. The error is
// [ErrNothing] where that is nothing, [ErrOurs] where it is a policy's, and else names a root
// qdisc that no policy can stand for.
func Policy(x *survey.Interface) (string, error) {
	a := &adoption{from: x, spec: &hierarchy.Spec{Interface: x.Name}}
	if err := a.make(); err != nil {
		return "", fmt.Errorf("%s: %w", x.Name, err)
	}
	if err := a.mend(); err != nil {
		return "", fmt.Errorf("%s: %w", x.Name, err)
	}
	return policy.Format("", []*hierarchy.Spec{a.spec}, a.notes()), nil
}

// adoption is the work on one policy.
type adoption struct {
	from *survey.Interface
	spec *hierarchy.Spec
	top  *branch
	head []string // comments at the top of the file
}

// make makes the policy, which may still break rules that [adoption.mend] sees to.
func (a *adoption) make() error {
	x := a.from
	polices := police(x)
	switch {
	case hierarchy.Root{Kind: x.Root.Kind, Handle: x.Root.Handle}.Ours():
		return ErrOurs
	case x.Root.Kind == "" && x.Receive == nil && polices == 0:
		return ErrNothing
	}
	a.head = append(a.head, "What others have set up on "+x.Name+" by tc, as a policy: "+described(x)+".")
	top, sends, err := planted(x)
	if err != nil {
		return err
	}
	a.top = top
	if x.Root.Kind != "" {
		a.spec.Replace = true
		if len(x.Classes)+len(x.Filters)+len(x.Leaves) > 0 {
			top.note("replace", "takes the place of %s %v with all below it, which vifshape cannot put back: keep what made it", x.Root.Kind, x.Root.Handle)
		} else {
			top.note("replace", "takes the place of %s %v", x.Root.Kind, x.Root.Handle)
		}
		a.spec.Line = line(x, top)
	}
	switch {
	case sends:
		if err := a.receive(); err != nil {
			return err
		}
	case x.Receive != nil:
		a.hook()
	}
	if polices != 0 {
		a.police(polices)
	}
	a.others()
	sending().fit(top)
	if top.receiving() {
		receiving().fit(top)
	}
	a.spec.BranchSpec = *top.tree()
	top.spec = &a.spec.BranchSpec
	return nil
}

// planted are the branches of what shapes an interface; where nothing does what is sent, those
// of what is received.
func planted(x *survey.Interface) (top *branch, sends bool, err error) {
	classless := x.Root.Kind == "htb" && len(x.Classes) == 0 // as wondershaper makes one, to receive alone
	if top, err = plant(x); err != nil || top != nil && (!classless || x.Receive == nil) {
		return top, true, err
	}
	top = nil
	if x.Receive != nil {
		top, err = plant(x.Receive)
	}
	if top == nil {
		top = &branch{spec: &hierarchy.BranchSpec{}}
	}
	top.onlyReceives(x)
	return top, false, err
}

// described says what stands on an interface.
func described(x *survey.Interface) string {
	var all []string
	if x.Root.Kind != "" {
		all = append(all, counted(x))
	}
	if x.Receive != nil {
		all = append(all, "what it receives goes through "+x.Receive.Name+", "+counted(x.Receive))
	} else if police(x) != 0 {
		all = append(all, "a filter drops what it receives above a rate")
	}
	return strings.Join(all, "; ")
}

func counted(x *survey.Interface) string {
	if x.Root.Kind == "" {
		return "which has no root qdisc"
	}
	text := fmt.Sprintf("%s %v", x.Root.Kind, x.Root.Handle)
	if n := len(x.Classes); n > 0 {
		text += " with " + words.Number(n, "class", "classes")
	}
	if n := len(x.Filters); n > 0 {
		text += " and " + words.Number(n, "filter", "filters")
	}
	return text
}

// hook says what has to go from the ingress hook before the policy can be in force.
func (a *adoption) hook() {
	x := a.from
	switch x.Hook {
	case "ingress":
		a.head = append(a.head, fmt.Sprintf("Before apply: tc qdisc del dev %s ingress, which has the place of the classifier.", x.Name))
	case "clsact":
		if x.Receive != nil {
			a.head = append(a.head, fmt.Sprintf("Before apply: tc filter del dev %s ingress, or packets go to %s first.", x.Name, x.Receive.Name))
		}
	}
}

// notes are all comments with their places.
func (a *adoption) notes() []policy.Note {
	notes := []policy.Note{{Text: strings.Join(a.head, "\n")}}
	a.top.each(hierarchy.Path(a.spec.Interface), func(p hierarchy.Path, b *branch) {
		for _, n := range b.notes {
			notes = append(notes, policy.Note{Path: p, Key: n.key, Text: n.text})
		}
	})
	return notes
}

// mend takes out of the policy what is not right in it, until all is.
func (a *adoption) mend() error {
	const tries = 1000 // each takes one value out
	for range tries {
		_, problems := hierarchy.Resolve(a.spec, qdisc.Kinds())
		i := slices.IndexFunc(problems, func(p hierarchy.Problem) bool { return !p.Warning })
		if i < 0 {
			return nil
		}
		if p := problems[i]; !a.top.drop(hierarchy.Path(a.spec.Interface), p) {
			return fmt.Errorf("%s: %s", p.Path, p.Text)
		}
	}
	return errors.New("no policy was found that is right")
}

// drop takes the value out that a problem is about; false where there is none.
func (b *branch) drop(of hierarchy.Path, p hierarchy.Problem) bool {
	var at *branch
	b.each(of, func(path hierarchy.Path, x *branch) {
		if path == p.Path {
			at = x
		}
	})
	if at == nil {
		return false
	}
	s, key := at.spec, p.Key
	if sub, ok := strings.CutPrefix(key, "ingress"); ok {
		if s.Ingress == nil || sub == "" {
			return false
		}
		s, key = s.Ingress, strings.TrimPrefix(sub, ".")
	}
	word, _, _ := strings.Cut(key, ".")
	lost := ""
	switch {
	case word == "match" && p.Index < len(s.Match):
		lost = "match " + s.Match[p.Index].Text()
		s.Match = slices.Delete(slices.Clone(s.Match), p.Index, p.Index+1)
	case word == "qdisc" && s.Qdisc != nil:
		lost = "qdisc " + s.Qdisc.Kind
		s.Qdisc = nil
	case word == "burst" && s.Burst != 0:
		lost, s.Burst = fmt.Sprintf("burst %v", s.Burst), 0
	case word == "cburst" && s.CBurst != 0:
		lost, s.CBurst = fmt.Sprintf("cburst %v", s.CBurst), 0
	case word == "quantum" && s.Quantum != 0:
		lost, s.Quantum = fmt.Sprintf("quantum %v", s.Quantum), 0
	case word == "prio" && s.Prio != nil:
		lost, s.Prio = fmt.Sprintf("prio %d", *s.Prio), nil
	default:
		return false
	}
	at.note(word, "not taken over: %s: %s", lost, p.Text)
	return true
}
