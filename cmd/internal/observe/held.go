package observe

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Held is how far a binding holds the processes that it names: whose packets are
// the branch's is decided socket by socket.
type Held struct {
	Sockets   *int      `json:"sockets,omitempty"` // open ones that can send by the interface; absent: it cannot be told
	Carried   *int      `json:"carried,omitempty"` // those whose packets are the branch's
	Elsewhere []Stray   `json:"elsewhere,omitempty"`
	Untold    int       `json:"untold,omitempty"`      // sockets of which the kernel does not tell
	Other     []process `json:"other_netns,omitempty"` // processes in another network namespace
	Unread    []process `json:"unread,omitempty"`      // processes whose sockets cannot be read
}

// Stray is sockets whose packets are another branch's.
type Stray struct {
	Branch    hierarchy.Path `json:"branch"`
	Sockets   int            `json:"sockets"`
	Processes []process      `json:"processes"`
}

// holds fills in how far the bindings of each class hold. Where that may not be read
// it stays out.
func holds(ctx context.Context, x *shaper.Interface, bound map[hierarchy.ClassID][]Bound) error {
	var pids []int
	for _, list := range bound {
		for _, v := range list {
			for _, p := range v.Processes {
				pids = append(pids, p.PID)
			}
		}
	}
	all, err := x.Binder.Census(ctx, pids)
	if errors.Is(err, caps.ErrNotPrivileged) {
		return nil
	}
	if err != nil {
		return err
	}
	for class, list := range bound {
		for i := range list {
			if processesOf(list[i].Target) {
				list[i].Held = holding(x, class, list[i].Processes, all)
			}
		}
	}
	return nil
}

// holding sorts the sockets of the processes that are bound to a class.
func holding(x *shaper.Interface, class hierarchy.ClassID, of []process, all map[int]cgroup.ProcessSockets) (v Held) {
	seen := map[uint64]bool{}
	carried, stray := 0, map[hierarchy.Path]*Stray{}
	for _, p := range of {
		s := all[p.PID]
		if s.Elsewhere {
			v.Other = append(v.Other, p)
		}
		if s.Err != nil {
			v.Unread = append(v.Unread, p)
		}
		strays := map[hierarchy.Path]bool{}
		for inode, is := range s.Sockets {
			again := seen[inode]
			seen[inode] = true
			switch {
			case is == class && !again:
				carried++
			case is == class, is == 0 && again:
			case is == 0:
				v.Untold++
			default:
				at := x.BranchOf(is)
				if stray[at] == nil {
					stray[at] = &Stray{Branch: at}
				}
				if !again {
					stray[at].Sockets++
				}
				strays[at] = true
			}
		}
		for at := range strays {
			stray[at].Processes = append(stray[at].Processes, p)
		}
	}
	for _, at := range slices.Sorted(maps.Keys(stray)) {
		v.Elsewhere = append(v.Elsewhere, *stray[at])
	}
	if len(v.Unread) == 0 || len(seen) > 0 {
		total := len(seen)
		v.Sockets, v.Carried = &total, &carried
	}
	return v
}

// processesOf says whether a target names processes.
func processesOf(t bind.Target) bool {
	return t.Kind == bind.TargetCgroup || t.Kind == bind.TargetUser
}

// Summary says in a few words how far a binding holds; empty for what names no processes.
func (b *Bound) Summary() string {
	if !processesOf(b.Target) {
		return ""
	}
	if len(b.Processes) == 0 {
		return "no process"
	}
	s := words.Number(len(b.Processes), "process", "processes")
	if b.Sockets == nil {
		return s
	}
	switch total, carried := *b.Sockets, *b.Carried; {
	case total == 0 && len(b.Other) == len(b.Processes):
		return s
	case total == 0:
		return s + ", no open socket"
	case carried == total:
		return s + ", " + words.Number(total, "socket that carries it", "sockets that carry it")
	case total == 1:
		return s + ", 1 socket that does not carry it"
	case carried == 1:
		return fmt.Sprintf("%s, 1 of %d sockets carries it", s, total)
	case carried == 0:
		return fmt.Sprintf("%s, none of %d sockets carries it", s, total)
	default:
		return fmt.Sprintf("%s, %d of %d sockets carry it", s, carried, total)
	}
}

// Reasons says, a line each, what a binding does not hold.
func (v *Held) Reasons() (lines []string) {
	for _, e := range v.Elsewhere {
		lines = append(lines, fmt.Sprintf("%s in %s: %s", words.Number(e.Sockets, "socket", "sockets"), e.Branch, processNames(e.Processes)))
	}
	if v.Untold > 0 {
		lines = append(lines, words.Number(v.Untold, "socket of which the kernel does not tell where it belongs", "sockets of which the kernel does not tell where they belong"))
	}
	if len(v.Other) > 0 {
		lines = append(lines, fmt.Sprintf("%s in another network namespace, of which this binding holds nothing that is forwarded: %s",
			words.Number(len(v.Other), "process", "processes"), processNames(v.Other)))
	}
	if len(v.Unread) > 0 {
		lines = append(lines, fmt.Sprintf("the sockets of %s cannot be read: %s", words.Number(len(v.Unread), "process", "processes"), processNames(v.Unread)))
	}
	return lines
}

// processNames lists processes, the first few.
func processNames(all []process) string {
	const most = 6
	var s string
	for i, p := range all {
		switch {
		case i == most:
			return fmt.Sprintf("%s and %d more", s, len(all)-most)
		case i > 0:
			s += ", "
		}
		s += fmt.Sprintf("%s[%d]", words.Printable(p.Name), p.PID)
	}
	return s
}

// heldBy is how far bindings hold, by target.
func heldBy(ctx context.Context, x *shaper.Interface, all []hierarchy.Bound) (map[bind.Target]Bound, error) {
	bound, err := boundTo(ctx, x, all)
	if err != nil {
		return nil, err
	}
	held := map[bind.Target]Bound{}
	for _, list := range bound {
		for _, v := range list {
			held[v.Target] = v
		}
	}
	return held, nil
}

// Strayed warns of sockets that new bindings do not hold, because they were open
// before, on an interface that is still open. What was done is done, whether that can be
// told or not.
func Strayed(ctx context.Context, m *shaper.Machine, x *shaper.Interface, steps []hierarchy.Step) {
	var fresh []hierarchy.Bound
	for _, s := range steps {
		if b, ok := s.New.(*hierarchy.Bound); ok && b != nil {
			if was, _ := s.Old.(*hierarchy.Bound); was == nil || was.Class != b.Class {
				fresh = append(fresh, *b)
			}
		}
	}
	if len(fresh) == 0 {
		return
	}
	// all bindings: what another one names more exactly is not theirs
	var s hierarchy.State
	var held map[bind.Target]Bound
	err := x.Binder.Read(ctx, &s)
	if err == nil {
		held, err = heldBy(ctx, x, s.Bound)
	}
	if err != nil {
		m.Warnf("", "whether it holds what is open already cannot be told: %v", err)
		return
	}
	for _, b := range fresh {
		v := held[b.Target]
		v.From = b.From
		stays(m, x.BranchOf(b.Class), v.name(), v.Held, s.Hook.Way)
	}
}

// stays warns of open sockets that a branch does not have.
func stays(m *shaper.Machine, in hierarchy.Path, what string, v Held, way bind.Way) {
	var where, pids []string
	n := 0
	for _, s := range v.Elsewhere {
		n += s.Sockets
		where = append(where, fmt.Sprintf("%s: %s", s.Branch, processNames(s.Processes)))
		for _, p := range s.Processes {
			pids = append(pids, strconv.Itoa(p.PID))
		}
	}
	if n == 0 {
		return
	}
	of := words.Number(*v.Sockets, "open socket stays", "open sockets stay")
	m.Warnf(in, "%s: %s: %d of %s in %s; what is opened from now on is held", in, what, n, of, strings.Join(where, ", in "))
	if way == bind.WayBPF {
		slices.Sort(pids)
		m.Hintf(in, "`vifshape attach %s %s` carries open connections over", in, strings.Join(slices.Compact(pids), " "))
	}
}

// LeftBehind warns of sockets of attached processes that attach could not carry over,
// though the kernel did not say so.
func LeftBehind(ctx context.Context, m *shaper.Machine, path hierarchy.Path, got *home.Attachment) {
	x, err := m.Interface(path.Interface(), "")
	if err != nil {
		m.Warnf(path, "whether it holds what was open cannot be told: %v", err)
		return
	}
	defer x.Binder.Close()
	_, class, _ := x.Record.Leaf(path)
	v := Bound{Target: bind.ToCgroup("")}
	for _, p := range got.Processes {
		v.Processes = append(v.Processes, process{p.PID, p.Name})
	}
	one := map[hierarchy.ClassID][]Bound{class: {v}}
	if err := holds(ctx, x, one); err != nil {
		m.Warnf("", "whether it holds what was open cannot be told: %v", err)
		return
	}
	stays(m, path, "attached", one[class][0].Held, bind.WayNone)
}
