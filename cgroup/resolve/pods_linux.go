package resolve

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/cgroup/iface"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Pod is a pod that runs on this machine, or has just ended.
type Pod struct {
	bind.RunningPod
	// Links are the host's ends of its interfaces as they were found ([Resolution.Links]): they
	// are the pod's when nothing of it is there any more that tells. Its sockets send what they
	// hold nevertheless.
	Links []Link
	Ended bool // it does not run any more
}

// Link is an interface of the machine. Indexes go round: no other one gets its
// (dev_index_reserve, net/core/dev.c, v6.12).
type Link struct {
	Index uint32 `json:"index"`
	Name  string `json:"name"`
}

// Placed is where a pod belongs on an interface.
type Placed struct {
	Branch  *Branch // nil: in none, and so the rest's
	Binding bind.Binding
	Denied  string // why it is not where its author would like; empty: it is, or nobody said
}

// Place finds the branch that a pod belongs to, in the order of the policy: the one that its
// author would like, if that may carry it, else the first that may; and below that one again the
// first that may. What names the pod alone, as a limit on it does, goes before what names many.
func Place(pod *bind.RunningPod, branches []Branch) Placed {
	var may []Placed
	wished, known := hierarchy.Path(""), false
	for i := range branches {
		b := &branches[i]
		like := pod.Wish != "" && (string(b.Path) == pod.Wish || inside(b.Path) == pod.Wish)
		known = known || like
		for _, x := range b.Bind {
			if x.Kind != bind.Pod || !bind.Pods(x.Name).Has(pod) {
				continue
			}
			may = append(may, Placed{Branch: b, Binding: x})
			if like {
				wished = b.Path
			}
		}
	}
	var at Placed
	switch {
	case wished != "":
		may = slices.DeleteFunc(may, func(x Placed) bool { return !x.Branch.Path.Below(wished) })
	case pod.Wish != "" && known:
		at.Denied = fmt.Sprintf("%s would like %s, and is not among the pods of that", pod, pod.Wish)
	case pod.Wish != "":
		at.Denied = fmt.Sprintf("%s would like %s, and there is no such branch", pod, pod.Wish)
	}
	many := func(x Placed) bool { return !bind.Pods(x.Binding.Name).Named() }
	if slices.ContainsFunc(may, func(x Placed) bool { return !many(x) }) {
		may = slices.DeleteFunc(may, many)
	}
	for _, x := range may {
		if at.Branch == nil || x.Branch != at.Branch && x.Branch.Path.Below(at.Branch.Path) {
			at.Branch, at.Binding = x.Branch, x.Binding
		}
	}
	return at
}

// inside is a path without its interface.
func inside(p hierarchy.Path) string {
	_, names, _ := strings.Cut(string(p), "/")
	return names
}

// pods are the cgroups of those that run, by the branch and the binding that they belong to.
type pods struct {
	*look
	all    []Pod
	placed []placedPod
	of     map[bind.Target]*Pod // whose cgroups these are
}

// placedPod is a pod that belongs to a branch.
type placedPod struct {
	*Pod
	Placed
}

// place gives all pods their branches. It reads what runs only where a branch has pods.
func (l *look) place(branches []Branch) (*pods, error) {
	p := &pods{look: l, of: map[bind.Target]*Pod{}}
	any := false
	for i := range branches {
		for _, x := range branches[i].Bind {
			any = any || x.Kind == bind.Pod
		}
	}
	if !any || l.Pods == nil {
		return p, nil
	}
	var err error
	if p.all, err = l.Pods(); err != nil {
		return nil, err
	}
	ask, err := iface.Dial(l.NetNSFD)
	if err != nil {
		return nil, err
	}
	defer ask.Close()
	for i := range p.all {
		if l.Only != nil && !slices.Contains(l.Only, p.all[i].ID) {
			continue
		}
		pod := &p.all[i]
		if pod.Links, err = l.there(ask, pod.Links); err != nil {
			return nil, err
		}
		if pod.Ended && len(pod.Links) == 0 {
			continue
		}
		if at := Place(&pod.RunningPod, branches); at.Branch != nil {
			p.placed = append(p.placed, placedPod{pod, at})
		}
	}
	return p, nil
}

// there are those of some interfaces that are still there, as they are called now.
func (l *look) there(ask *iface.Conn, links []Link) (now []Link, err error) {
	for _, x := range links {
		l.Watch("", func(name string) bool { return name == x.Name })
		is, err := ask.Get(x.Index, "")
		if errors.Is(err, iface.ErrNone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		now = append(now, Link{is.Index, is.Name})
	}
	return now, nil
}

// targets are the cgroups of the pods that belong to a branch by one of its bindings.
func (p *pods) targets(b *Branch, x bind.Binding) (targets []bind.Target, missing []string, err error) {
	for _, pod := range p.placed {
		if pod.Branch != b || pod.Binding.Name != x.Name {
			continue
		}
		at, reasons, err := p.cgroups(PodCgroup(pod.Cgroup))
		if err != nil {
			return nil, nil, err
		}
		for _, reason := range reasons {
			if !pod.Ended {
				missing = append(missing, fmt.Sprintf("%s: %s", pod, reason))
			}
		}
		for _, target := range at {
			p.of[target] = pod.Pod
		}
		targets = append(targets, at...)
	}
	if len(targets)+len(missing) > 0 {
		return targets, missing, nil
	}
	for i := range p.all {
		if bind.Pods(x.Name).Has(&p.all[i].RunningPod) { // it is another branch's
			return nil, nil, nil
		}
	}
	return nil, []string{"no such pod runs here, as far as the container runtime has told"}, nil
}

// left binds the interfaces that are noted of pods and to which nothing leads any more, as what
// is left of the pod is bound, or would be.
func (p *pods) left(r *resolver, led map[string]bool) {
	if p.NoLinks != nil {
		return
	}
	for _, pod := range p.placed {
		by := r.won[bind.ToCgroup(PodCgroup(pod.Cgroup))]
		if by == nil {
			by = &claim{branch: pod.Branch, binding: pod.Binding, pod: pod.Pod, from: pod.Binding.String()}
		}
		for _, link := range pod.Links {
			target := bind.ToLink(link.Name)
			if !led[link.Name] && link.Name != p.Interface && r.claims[target] == nil && r.won[target] == nil {
				r.bind(target, by)
			}
		}
	}
}

// PodCgroup is the path of a pod's cgroup as a runtime names it: the path itself, or with systemd
// the last of its slices alone, whose names have those above in them (systemd.slice(5)).
func PodCgroup(name string) string {
	if !strings.HasSuffix(name, ".slice") || strings.Contains(name, "/") {
		return path.Clean("/" + name)
	}
	all, stem := "", strings.TrimSuffix(name, ".slice")
	for i, c := range stem + "-" {
		if c == '-' && i > 0 {
			all += "/" + stem[:i] + ".slice"
		}
	}
	return all
}
