// Package doctor says what a kernel and a machine can do and cannot, what that means for
// vifshape, and what to do about it, as findings. It prints nothing.
package doctor

import (
	"context"
	"fmt"
	"slices"

	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
)

// Condition is how things stand with one finding.
type Condition string

const (
	good    Condition = "good"
	Weaker  Condition = "weaker"
	Missing Condition = "missing"
	Unknown Condition = "unknown"
)

// The groups of findings, in the order in which they are shown.
const (
	groupPolicy    = "policy"
	groupMachine   = "machine"
	groupQueueing  = "queueing"
	groupBinding   = "binding"
	GroupInterface = "interface"
)

// topicAbsent is the topic of interfaces of a policy that are not there.
const topicAbsent = "interface"

// Finding is one thing that doctor looked at. Its JSON form is stable.
type Finding struct {
	Group     string         `json:"group"`
	Topic     string         `json:"topic"`
	State     Condition      `json:"state"`
	Needed    bool           `json:"needed"` // unless it is good nothing can be applied
	Text      string         `json:"text"`
	Follows   string         `json:"follows,omitempty"` // what it means for vifshape
	Fix       []string       `json:"fix,omitempty"`     // commands
	Names     []string       `json:"names,omitempty"`   // of what the finding counts up
	Weak      []string       `json:"weak,omitempty"`    // what a way of binding does not hold that bpf does
	Interface string         `json:"interface,omitempty"`
	Path      hierarchy.Path `json:"path,omitempty"` // of the branch of the policy
	File      string         `json:"file,omitempty"` // of the policy
	Line      int            `json:"line,omitempty"`
	Column    int            `json:"column,omitempty"`
}

// Stops says whether nothing can be applied because of it.
func (f *Finding) Stops() bool { return f.Needed && f.State == Missing }

// absent says whether it is about an interface of the policy that is not there.
func (f *Finding) absent() bool { return f.Topic == topicAbsent && f.State == Missing }

// Place is "policy.toml:7:3: ", as in the messages about a policy.
func (f *Finding) Place() string {
	if f.Line == 0 {
		return ""
	}
	return fmt.Sprintf("%s:%d:%d: ", f.File, f.Line, f.Column)
}

// verdict is what all findings come to.
type verdict string

const (
	Can     verdict = "can"
	Partial verdict = "partial" // but for interfaces that are not there
	Cannot  verdict = "cannot"
	Unclear verdict = "unclear"
)

// judge is what findings come to.
func judge(all []Finding) verdict {
	v := Can
	for _, f := range all {
		switch {
		case f.Stops():
			return Cannot
		case f.Needed && f.State == Unknown:
			v = Unclear
		case f.absent() && v == Can:
			v = Partial
		}
	}
	return v
}

// Report is what was found. Its JSON form is stable.
type Report struct {
	Verdict  verdict   `json:"verdict"`
	OK       bool      `json:"ok"`
	Policy   string    `json:"policy,omitempty"` // its file
	Kernel   string    `json:"kernel"`
	Way      string    `json:"way"` // of binding that auto takes, empty: none
	Findings []Finding `json:"findings"`

	hardware map[string]bool // interfaces that are
	named    bool            // interfaces were asked for
}

// Examine looks at a machine and some of its interfaces, with no name at all of them,
// and at what stands in the way of a policy; no file: none. What cannot be looked at is a
// finding as any other. It changes nothing but that the kernel may load modules.
func Examine(ctx context.Context, m *shaper.Machine, file string, interfaces []string) (*Report, error) {
	x, err := examine(m)
	if err != nil {
		return nil, err
	}
	x.machine(ctx)
	if file != "" {
		named, err := x.policy(ctx, file)
		if err != nil {
			return nil, err
		}
		if len(interfaces) == 0 {
			interfaces = named
		}
	}
	x.try(Finding{Group: GroupInterface, Topic: "interfaces"}, func() error {
		return x.interfaces(ctx, interfaces, file != "")
	})
	v := judge(x.all)
	return &Report{Verdict: v, OK: v == Can, Policy: file, Kernel: x.release, Way: string(x.way), Findings: x.all, hardware: x.hardware, named: len(interfaces) > 0}, nil
}

// Shown are the findings for people, in order.
func (r *Report) Shown() []Finding {
	speaks := map[string]bool{}
	for _, f := range r.Findings {
		speaks[f.Interface] = speaks[f.Interface] || f.State != good
	}
	var out []Finding
	for _, group := range []string{groupPolicy, groupMachine, groupQueueing, groupBinding, GroupInterface} {
		for _, f := range r.Findings {
			switch {
			case f.Group != group:
				continue
			case r.Policy != "" && f.Group != groupPolicy && f.State == good:
				continue
			case f.Group == GroupInterface && !r.named && !r.hardware[f.Interface] && !speaks[f.Interface]:
				continue
			}
			out = append(out, f)
		}
	}
	return out
}

// add keeps a finding. What is good needs no command.
func (x *examination) add(f Finding) {
	if f.State == good {
		f.Fix = nil
	}
	f.Fix = slices.Compact(f.Fix)
	x.all = append(x.all, f)
}
