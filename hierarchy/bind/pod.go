package bind

import (
	"errors"
	"fmt"
	"strings"
)

// Pods is which pods of Kubernetes a branch may carry: a namespace and a name, "shop/web-1", either
// or both a [Pattern], as in "shop/*"; a label in any namespace, "label:app=web", or in some,
// "shop/label:app=web". As [Binding] it is of kind [Pod].
//
// A pod's author chooses its name and labels, not its namespace: without one a label is a permission
// for all who may start pods at all.
type Pods string

// labelPrefix is what a label begins with, alone or behind the namespace.
const labelPrefix = "label:"

// RunningPod is a pod as the container runtime of the machine tells of it.
type RunningPod struct {
	ID        string            `json:"id"` // of its sandbox
	Namespace string            `json:"namespace"`
	Name      string            `json:"name"`
	Labels    map[string]string `json:"labels,omitempty"`
	Cgroup    string            `json:"cgroup"`         // of all that runs in it: its path from the root
	Wish      string            `json:"wish,omitempty"` // the branch that its author would like: without its interface, or its whole path
}

// String is what a binding of kind [Pod] names it by alone, behind the colon: "shop/web-1".
func (p *RunningPod) String() string { return p.Namespace + "/" + p.Name }

// ParsePods reads what [Pods] tells of.
func ParsePods(s string) (Pods, error) {
	if len(s) > 4096 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return "", fmt.Errorf("%q has a space, a control character or more than 4096 bytes", s)
	}
	if err := podsError(s); err != nil {
		return "", err
	}
	return Pods(s), nil
}

// podsError is what is wrong with the text of one.
func podsError(s string) error {
	if account, ok := strings.CutPrefix(s, "serviceaccount:"); ok {
		return fmt.Errorf("%q: a container runtime is not told of service accounts: name the namespace, as in %q", s, namespaceOf(account)+"/*")
	}
	if named, ok := strings.CutPrefix(s, Pod.String()+":"); ok {
		return fmt.Errorf("%q: write %q", s, named)
	}
	space, name, label := Pods(s).parts()
	if label != "" {
		key, value, ok := strings.Cut(label, "=")
		if !ok || key == "" || value == "" || strings.ContainsAny(key, "*?[") || strings.ContainsAny(value, "=/") {
			return fmt.Errorf("%q: a label is written with its value, as in \"label:app=web\"", s)
		}
		return errors.Join(part(s, space), part(s, value))
	}
	if space == "" || name == "" || strings.Contains(name, "/") {
		return fmt.Errorf("%q does not say which pods: write a namespace and a name, as in \"shop/web-1\" or \"shop/*\", or a label, as in \"shop/label:app=web\"", s)
	}
	return errors.Join(part(s, space), part(s, name))
}

// namespaceOf is the first part of "shop/api".
func namespaceOf(s string) string {
	space, _, _ := strings.Cut(s, "/")
	return space
}

// part is the error of one that is no pattern of names.
func part(s, of string) error {
	if err := Pattern(of).Check(); err != nil {
		return fmt.Errorf("%q: %w", s, err)
	}
	return nil
}

// parts are the namespace, which for a label may be left out, and the name or the label.
func (p Pods) parts() (space, name, label string) {
	if label, ok := strings.CutPrefix(string(p), labelPrefix); ok {
		return "*", "", label
	}
	space, name, _ = strings.Cut(string(p), "/")
	if label, ok := strings.CutPrefix(name, labelPrefix); ok {
		return space, "", label
	}
	return space, name, ""
}

// Named says whether one pod alone is meant, by its name.
func (p Pods) Named() bool {
	space, name, _ := p.parts()
	return name != "" && Pattern(space).Exact() && Pattern(name).Exact()
}

// Everywhere says whether pods of every namespace may be meant, so that nothing tells them that
// a pod's author does not choose.
func (p Pods) Everywhere() bool {
	space, _, _ := p.parts()
	return Pattern(space).Literals() == 0
}

// In is the same pods, but only those of a namespace.
func (p Pods) In(namespace string) Pods {
	_, name, label := p.parts()
	if label != "" {
		name = labelPrefix + label
	}
	return Pods(namespace + "/" + name)
}

// Has says whether a pod is among them.
func (p Pods) Has(pod *RunningPod) bool {
	space, name, label := p.parts()
	if !Pattern(space).Match(pod.Namespace) {
		return false
	}
	if label == "" {
		return Pattern(name).Match(pod.Name)
	}
	key, value, _ := strings.Cut(label, "=")
	has, ok := pod.Labels[key]
	return ok && Pattern(value).Match(has)
}

// UnmarshalText implements encoding.TextUnmarshaler with [ParsePods].
func (p *Pods) UnmarshalText(t []byte) error {
	v, err := ParsePods(string(t))
	if err == nil {
		*p = v
	}
	return err
}
