package escape

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Level is how a program is kept in its branch; see vifshape run.
type Level string

// Levels. An empty one stands for each of them in a [Hole].
const (
	Tag  Level = "tag"
	Lock Level = "lock"
)

// User is for whom the attempt runs.
type User string

// Users. An empty one stands for each of them in a [Hole].
const (
	Root   User = "root"
	Nobody User = "nobody" // a user without privileges, who is not alone
)

// Case is what an attempt is made against.
type Case struct {
	Way   bind.Way `json:"way"`
	Level Level    `json:"level"`
	User  User     `json:"user"`
	// Blind: what is received and answers to nothing is nobody's, for nobody is looked for
	// who would get it.
	Blind bool `json:"blind,omitempty"`
}

func (c Case) String() string { return fmt.Sprintf("%s %s %s", c.Way, c.Level, c.User) }

// Attempt is one way to try to get out.
type Attempt struct {
	Name   string // as in "so-priority-class"
	Family string // the group that it is shown in
	Text   string // what it does, a few words
	Holes  []Hole // where it is known to succeed
	Spoils bool   // the network is of no more use when it was not refused
	Whose  Whose  // empty: what it sends is counted; else what is received, and should be in this one's branch
	ready  func(*Place) (*os.File, func(), error)
	do     func(*stage) error
}

// Whose tells for whom a packet is that is received.
type Whose string

// Who may receive.
const (
	Its     Whose = "its"     // the program that tries
	Theirs  Whose = "theirs"  // the outsider, who is in the other branch
	Nobodys Whose = "nobodys" // somebody who is bound by nothing
)

// Direction is that of the packets by which an attempt is judged.
func (a *Attempt) Direction() hierarchy.Direction {
	if a.Whose != "" {
		return hierarchy.Receive
	}
	return hierarchy.Send
}

// Ready makes what an attempt needs from before, as root, outside of the branch and in its
// network namespace: stdin is the program's standard input, nil for one that tells nothing,
// and undo takes away what was made.
func (a *Attempt) Ready(p *Place) (stdin *os.File, undo func(), err error) {
	undo = func() {}
	if a.ready == nil {
		return nil, undo, nil
	}
	stdin, done, err := a.ready(p)
	if done != nil {
		undo = done
	}
	return stdin, undo, err
}

// Hole is where an attempt is known to get out.
type Hole struct {
	Level Level      // empty: all
	User  User       // empty: all
	Ways  []bind.Way // none: all
	Blind bool       // only where nobody is looked for, see [Case]
	Why   string
	// Impossible: nothing on the machine that sends could close it.
	Impossible bool
}

// Hole is the hole that explains an escape in a case, nil when the attempt must
// not get out.
func (a *Attempt) Hole(c Case) *Hole {
	for i, h := range a.Holes {
		if (h.Level == "" || h.Level == c.Level) && (h.User == "" || h.User == c.User) && (len(h.Ways) == 0 || slices.Contains(h.Ways, c.Way)) && (c.Blind || !h.Blind) {
			return &a.Holes[i]
		}
	}
	return nil
}

// Attempts are all, family by family.
func Attempts() []Attempt {
	return slices.Concat(traffic(), options(), raw(), packet(), matching(), groups(), spaces(), others(), before(), processes(), tree(), state(), received(), taken())
}

// Find is the attempt of that name, nil when there is none.
func Find(name string) *Attempt {
	all := Attempts()
	if i := slices.IndexFunc(all, func(a Attempt) bool { return a.Name == name }); i >= 0 {
		return &all[i]
	}
	return nil
}

// Outcome is what an attempt says of itself.
type Outcome struct {
	Sent   int           `json:"sent"`            // packets that were given to the kernel, or are to be received, at least
	Strays int           `json:"strays"`          // packets that the kernel may have sent on its own, which are the rest's
	Call   string        `json:"call,omitempty"`  // the call that failed
	Errno  syscall.Errno `json:"errno,omitempty"` // how
	Err    string        `json:"error,omitempty"` // the same in words; empty: nothing failed
	// Missing says that what the attempt needs is not on this machine.
	Missing string `json:"missing,omitempty"`
}

// lacks says what the kernel does not have, as far as the outcome tells: refusals
// may look the same, so it is to be asked of an attempt that nothing stood in
// the way of.
func (o *Outcome) lacks() string {
	switch o.Errno {
	case unix.ENOSYS, unix.ENOPROTOOPT, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.EOPNOTSUPP, unix.ESOCKTNOSUPPORT, unix.ENOEXEC:
		return o.Err
	}
	return o.Missing
}

// Unclear says that a refusal may be for want of something in the kernel, which the
// same attempt tells where nothing stands in its way; see [Judge].
func (o *Outcome) Unclear() bool { return o.Missing == "" && o.lacks() != "" }

// Counts are the packets of one attempt.
type Counts struct {
	Own     uint64 `json:"own"`     // in the class of the branch that they should be in
	Rest    uint64 `json:"rest"`    // in the class of what nothing is bound to
	Matched uint64 `json:"matched"` // in that of a branch outside whose matches fit whatever is sent, or received
	Others  uint64 `json:"others"`  // in all other leaves
	Arrived uint64 `json:"arrived"` // at the far end, or from there
}

// Sum are those that were counted by classes.
func (n Counts) Sum() uint64 { return n.Own + n.nobodys() + n.Others }

// nobodys are those of what is bound by nothing, which matches may take from the rest.
func (n Counts) nobodys() uint64 { return n.Rest + n.Matched }

// Verdict is what came of an attempt.
type Verdict string

// The verdicts.
const (
	Held       Verdict = "held"       // all packets were counted in the class of whose they are
	Refused    Verdict = "refused"    // the kernel refused
	Open       Verdict = "open"       // it got out, and that is documented for this way, level and user
	Impossible Verdict = "impossible" // it got out, and nothing could close that
	NotTried   Verdict = "not tried"  // the machine lacks what it takes
	Escaped    Verdict = "ESCAPED"    // it got out and should not have
	Failed     Verdict = "FAILED"     // it proved nothing: packets are missing
)

// Verdicts are all of them, in the order in which they are counted.
var Verdicts = []Verdict{Held, Refused, Open, Impossible, NotTried, Escaped, Failed}

// Bad says that a verdict is one to fail on.
func (v Verdict) Bad() bool { return v == Escaped || v == Failed }

// Result is a verdict and its reason.
type Result struct {
	Verdict Verdict `json:"verdict"`
	Reason  string  `json:"reason,omitempty"` // empty for what was held
	Out     bool    `json:"out,omitempty"`    // packets went elsewhere, or the tree was changed
}

// Judge says what came of an attempt. free is the outcome of the same attempt as
// root at level tag, which tells what the kernel lacks; nil unless o is unclear. changed says what of the
// tree is not as it was, empty for nothing.
func Judge(a *Attempt, c Case, o, free *Outcome, n Counts, changed string) Result {
	var out string
	switch counted := n.Sum(); {
	case n.Arrived > counted:
		out = fmt.Sprintf("%d packets went past the queue", n.Arrived-counted)
	case n.Others > 0:
		out = fmt.Sprintf("%d packets went to another branch", n.Others)
	case n.nobodys() > uint64(o.Strays) && n.Matched > 0:
		out = fmt.Sprintf("%d packets were nobody's, and went where they match", n.nobodys())
	case n.nobodys() > uint64(o.Strays):
		out = fmt.Sprintf("%d packets went to the rest", n.Rest)
	case changed != "":
		out = changed
	}
	if out != "" {
		h := a.Hole(c)
		switch {
		case h == nil:
			return Result{Escaped, out, true}
		case h.Impossible:
			return Result{Impossible, h.Why + ": " + out, true}
		}
		return Result{Open, h.Why + ": " + out, true}
	}
	if o.Err != "" || o.Missing != "" {
		lacks := o.Missing
		if o.Unclear() {
			lacks = free.lacks()
		}
		if lacks != "" {
			return Result{Verdict: NotTried, Reason: lacks}
		}
		return Result{Verdict: Refused, Reason: o.Err}
	}
	if o.Sent == 0 || n.Own < uint64(o.Sent) {
		return Result{Verdict: Failed, Reason: fmt.Sprintf("%d of %d packets were counted", n.Own, o.Sent)}
	}
	return Result{Verdict: Held}
}

// callError is a call that the kernel refused.
type callError struct {
	call string
	err  error
}

func (e *callError) Error() string { return e.call + ": " + e.err.Error() }

func (e *callError) Unwrap() error { return e.err }

// call names the call in an error.
func call(name string, err error) error {
	if err == nil {
		return nil
	}
	return &callError{name, err}
}

// missing says that the machine lacks what an attempt needs.
type missing string

func (m missing) Error() string { return string(m) }

func (o *Outcome) fail(err error) {
	var m missing
	if errors.As(err, &m) {
		o.Missing = string(m)
		return
	}
	var e *callError
	if errors.As(err, &e) {
		o.Call = e.call
	}
	errors.As(err, &o.Errno)
	o.Err = err.Error()
}
