package amend_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/vifshape/vifshape/hierarchy"
	. "github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

var seed = flag.Uint64("seed", 1, "of random policies and limits; another one looks elsewhere")

// least is what divides as often as limits are below one another here.
const least = 100 * hierarchy.Kbit

// chance makes policies and limits.
type chance struct{ *rand.Rand }

// amount is one that fits often, or none.
func (c chance) amount(most hierarchy.Bandwidth) hierarchy.Amount {
	switch c.IntN(4) {
	case 0:
		return hierarchy.Amount{}
	case 1:
		return amount(fmt.Sprintf("%d%%", 1+c.IntN(30)))
	}
	return hierarchy.Absolute(least + hierarchy.Bandwidth(c.Uint64N(uint64(most))))
}

// branches are some, with some below them; all is what they share.
func (c chance) branches(depth int, all hierarchy.Bandwidth, user *int) (bs []*hierarchy.BranchSpec) {
	for i := range c.IntN(4) {
		b := &hierarchy.BranchSpec{Name: fmt.Sprintf("b%d", i), Rate: c.amount(all / 6)}
		if c.IntN(3) == 0 {
			b.Ceil = hierarchy.Absolute(all)
		}
		if c.IntN(3) == 0 {
			p := uint8(c.IntN(8))
			b.Prio = &p
		}
		if c.IntN(2) == 0 {
			*user++
			b.Bind = []bind.Binding{{Kind: bind.User, Name: fmt.Sprint(*user)}}
		}
		if depth > 0 {
			b.Children = c.branches(depth-1, all/8, user)
		}
		if len(b.Children) == 0 && c.IntN(3) == 0 {
			b.Qdisc = &hierarchy.RawQdisc{Kind: "pfifo"}
		}
		bs = append(bs, b)
	}
	if len(bs) > 0 && c.IntN(3) == 0 {
		rest := &hierarchy.BranchSpec{Name: hierarchy.RestName}
		if c.IntN(2) == 0 {
			rest.Rate = c.amount(all / 10)
		}
		if c.IntN(2) == 0 {
			rest.Ceil = hierarchy.Absolute(all / 2)
		}
		bs = append(bs, rest)
	}
	return bs
}

// policy is one without mistakes.
func (c chance) policy() (*hierarchy.Spec, *hierarchy.Tree) {
	for {
		user := 1000
		s := &hierarchy.Spec{Interface: "eth0", BranchSpec: hierarchy.BranchSpec{Rate: hierarchy.Absolute(least + hierarchy.Bandwidth(c.Uint64N(1e9)))}}
		if c.IntN(8) == 0 {
			s.Rate = hierarchy.Absolute(Unlimited)
		}
		s.Children = c.branches(3, s.Rate.Of(0), &user)
		if c.IntN(2) == 0 {
			s.Ingress = &hierarchy.BranchSpec{Rate: hierarchy.Absolute(least + hierarchy.Bandwidth(c.Uint64N(1e9)))}
		}
		t, problems := hierarchy.Resolve(s, kinds)
		wrong := t == nil
		for _, p := range problems {
			wrong = wrong || !p.Warning
		}
		if !wrong {
			return s, t
		}
	}
}

// limits are some on what a tree has, and below one another.
func (c chance) limits(t *hierarchy.Tree) (all []Branch) {
	var above []hierarchy.Path
	for b := range t.All() {
		if b.Path.Base() != hierarchy.RestName && b.Entry() != nil {
			above = append(above, b.Path)
		}
	}
	for i, user := range c.Perm(60)[:1+c.IntN(6)] {
		b := Branch{Limit: fmt.Sprintf("user:%d", 1001+user), Path: above[c.IntN(len(above))].Join(fmt.Sprintf("limit%d", i))}
		if strings.Count(string(b.Path), "/") > 6 {
			continue
		}
		if c.IntN(4) > 0 {
			b.Ceil = hierarchy.Absolute(least + hierarchy.Bandwidth(c.Uint64N(uint64(t.Root.Rate)*2)))
		}
		if c.IntN(3) == 0 {
			b.Down = hierarchy.Absolute(least + hierarchy.Bandwidth(c.Uint64N(1e9)))
		}
		if c.IntN(6) == 0 {
			b.Rate = hierarchy.Absolute(least + hierarchy.Bandwidth(c.Uint64N(1e6)))
		}
		b.Bind = []bind.Binding{{Kind: bind.User, Name: b.Limit[len("user:"):]}}
		all, above = append(all, b), append(above, b.Path)
	}
	return all
}

// TestLimitRandom holds the rule of limits on policies and limits by chance: they take what is
// guaranteed to them from where they come from, which keeps the sum; no other branch's
// guarantee, ceiling or priority changes; none has a ceiling above that of where it comes from.
// What says no rate always fits.
func TestLimitRandom(t *testing.T) {
	made := 0
	for n := range uint64(3000) {
		c := chance{rand.New(rand.NewPCG(*seed, n))}
		policy, before := c.policy()
		limits := c.limits(before)
		if len(limits) == 0 {
			continue
		}
		text := fmt.Sprintf("policy\n%s\nlimits %+v", show(before), limits)
		rated := false
		for _, l := range limits {
			rated = rated || !l.Rate.IsZero()
		}
		x, err := Extend(policy, kinds, limits)
		if problem := (ProblemError{}); err != nil && rated && errors.As(err, &problem) {
			continue
		}
		if err != nil {
			t.Fatalf("PCG(%d, %d): %v\n%s", *seed, n, err, text)
		}
		made++
		if len(x.Dropped) > 0 || len(x.Kept) != len(limits) {
			t.Errorf("PCG(%d, %d): dropped %v\n%s", *seed, n, x.Dropped, text)
		}
		for _, err := range append(c.against(before, x.Tree, limits, false), c.against(before.Ingress, x.Tree.Ingress, limits, true)...) {
			t.Errorf("PCG(%d, %d): %v\n%s", *seed, n, err, text)
		}
		if t.Failed() {
			return
		}
	}
	if made < 1000 {
		t.Errorf("only %d were made (-seed %d)", made, *seed)
	}
}

// against are the rules that a tree with limits breaks, in one direction.
func (c chance) against(before, after *hierarchy.Tree, limits []Branch, receive bool) (broken []error) {
	say := func(format string, a ...any) { broken = append(broken, fmt.Errorf(format, a...)) }
	if after == nil {
		return nil
	}
	for b := range after.All() {
		sum := hierarchy.Bandwidth(0)
		for _, below := range b.Children {
			sum += below.Rate
			if below.Ceil > b.Ceil {
				say("%s has ceiling %v, %s above it %v", below.Path, below.Ceil, b.Path, b.Ceil)
			}
		}
		if sum > b.Rate {
			say("%s: the guarantees below it are %v, its own is %v", b.Path, sum, b.Rate)
		}
	}
	given := map[hierarchy.Path]hierarchy.Bandwidth{} // to limits, by what they are below
	for _, l := range limits {
		is := after.Find(l.Path)
		given[l.Path.Parent()] += is.Rate
		most := l.Ceil
		if receive {
			most = l.Down
		}
		if !most.IsZero() && is.Ceil > most.Of(0) {
			say("%s has ceiling %v, and was to have %v", l.Path, is.Ceil, most)
		}
		if from := after.Find(l.Path.Parent().Join(hierarchy.RestName)); is.Ceil > from.Ceil || is.Prio < from.Prio {
			say("%s has ceiling %v and priority %d, %s, where it comes from, %v and %d", l.Path, is.Ceil, is.Prio, from.Path, from.Ceil, from.Prio)
		}
	}
	if before == nil {
		return broken
	}
	for b := range before.All() {
		is := after.Find(b.Path)
		if is == nil {
			say("%s is gone", b.Path)
			continue
		}
		rate := is.Rate
		if b.Path.Base() == hierarchy.RestName {
			rate += given[b.Path.Parent()]
		}
		if rate != b.Rate || is.Ceil != b.Ceil || is.Prio != b.Prio && b.Leaf() && is.Leaf() {
			say("%s had %v, %v and %d, and has %v, %v and %d (with limits %v)", b.Path, b.Rate, b.Ceil, b.Prio, is.Rate, is.Ceil, is.Prio, rate)
		}
	}
	return broken
}

// show is a tree in words.
func show(t *hierarchy.Tree) (text string) {
	if t == nil {
		return ""
	}
	for b := range t.All() {
		text += fmt.Sprintf("%s %v up to %v prio %d\n", b.Path, b.Rate, b.Ceil, b.Prio)
	}
	return text + show(t.Ingress)
}

// TestLimitWholeRandom holds that an interface that is limited, all of it, stays one whose
// guarantees fit, and that no ceiling grows by it or is above the limit.
func TestLimitWholeRandom(t *testing.T) {
	for n := range uint64(2000) {
		c := chance{rand.New(rand.NewPCG(*seed, n))}
		policy, before := c.policy()
		part := func(of *hierarchy.Tree) hierarchy.Amount { // from a quarter to more than all
			return hierarchy.Absolute(of.Root.Rate/4 + hierarchy.Bandwidth(c.Uint64N(uint64(of.Root.Rate))))
		}
		l := Branch{Limit: "eth0", Path: "eth0", Ceil: part(before)}
		if before.Ingress != nil && c.IntN(2) == 0 {
			l.Down = part(before.Ingress)
		}
		x, err := Extend(policy, kinds, []Branch{l})
		if err != nil && strings.Contains(err.Error(), "less than a byte a second") { // a part of a part of little
			continue
		}
		if err != nil {
			t.Fatalf("PCG(%d, %d): %v\n%s%+v", *seed, n, err, show(before), l)
		}
		for _, d := range []struct {
			was, is *hierarchy.Tree
			most    hierarchy.Amount
		}{{before, x.Tree, l.Ceil}, {before.Ingress, x.Tree.Ingress, l.Down}} {
			if d.is == nil {
				continue
			}
			for _, err := range c.against(nil, d.is, nil, false) {
				t.Errorf("PCG(%d, %d): %v\n%s%+v", *seed, n, err, show(before), l)
			}
			for b := range d.is.All() {
				was := d.was.Find(b.Path)
				if was == nil || b.Ceil > was.Ceil || !d.most.IsZero() && b.Ceil > d.most.Of(0) {
					t.Fatalf("PCG(%d, %d): %s is %v up to %v now\n%s%+v", *seed, n, b.Path, b.Rate, b.Ceil, show(before), l)
				}
			}
		}
	}
}
