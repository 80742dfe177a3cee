package policy

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/BurntSushi/toml"

	"github.com/vifshape/vifshape/hierarchy"
)

// maxInput bounds a policy file: far above any tree that the kernel can hold,
// and small enough to read whole.
const maxInput = 64 << 20

// Policy is what a policy file asks for.
type Policy struct {
	// Binding is how processes are tied to branches: "auto", "bpf", "nft" or
	// "net_cls".
	Binding string
	// Trees are the interfaces in the order of the file, at least one.
	Trees []*hierarchy.Tree
	// Specs are the same as written: what [hierarchy.Resolve] made Trees of.
	Specs []*hierarchy.Spec
	// Warnings are about what is allowed but unlikely to be meant, in the order
	// of the file.
	Warnings []Error
	// Over are the names of what is laid over it.
	Over []string

	file  string
	index *index // for Place
	keys  []toml.Key
}

// Parse reads a policy of at most 64 MiB, and what is laid over it, in its order: of a table that
// both have the keys of both count, and of all else what the later one says. The name appears
// in messages only. Kinds are the queueing disciplines that leaves may have.
//
// When the policy is wrong, the error is of type [Errors] and holds all
// mistakes; use [errors.As]. Any other error means that it could not be read.
func Parse(name string, r io.Reader, kinds []hierarchy.Kind, over ...Text) (*Policy, error) {
	d, err := parse(append([]Text{{name, r}}, over...), kinds)
	if err != nil {
		return nil, err
	}
	p := &Policy{Binding: "auto", file: name, index: d.index, keys: d.keys}
	for _, t := range over {
		p.Over = append(p.Over, t.Name)
	}
	rd := reader{report: d.report, keys: d.keys, kinds: kinds, policy: p}
	rd.read(d.doc)
	all := d.errs()
	if slices.ContainsFunc(all, func(e Error) bool { return !e.Warning }) {
		return nil, all
	}
	p.Warnings = all
	return p, nil
}

// decode runs the TOML decoder. Where the scanner stopped, at stop, the decoder
// must find a mistake too; what follows that place has not been checked for its
// nesting, so the decoder sees only the rest of the line, in bounds.
func decode(text string, stop int) (doc map[string]any, keys []toml.Key, err error) {
	defer func() {
		// The decoder panics where it finds itself in a state that its authors
		// thought impossible.
		if p := recover(); p != nil {
			err = fmt.Errorf("the TOML decoder failed: %v", p)
		}
	}()
	if stop >= 0 {
		end := min(stop+1024, len(text))
		if n := strings.IndexByte(text[stop:end], '\n'); n >= 0 {
			end = stop + n + 1
		}
		for end < len(text) && !utf8.RuneStart(text[end]) {
			end--
		}
		text = text[:end]
	}
	var v any
	md, err := toml.Decode(text, &v)
	if err != nil {
		return nil, nil, err
	}
	doc, _ = v.(map[string]any)
	return doc, md.Keys(), nil
}

// For is the place, in Trees and Specs, of what the policy says of an interface, and how well
// it fits: the best one, of equal ones the first. -1: it says nothing of it.
func (p *Policy) For(n hierarchy.Identity) (at int, fit hierarchy.Fit) {
	at = -1
	for i, s := range p.Specs {
		if f := hierarchy.Selector(s.Interface).Fit(n); f > fit {
			at, fit = i, f
		}
	}
	return at, fit
}

// ByRoute says whether the policy has a table for the interface of the default route.
func (p *Policy) ByRoute() bool { return p.Names(string(hierarchy.DefaultRoute)) }

// Names says whether the policy has an interface written so.
func (p *Policy) Names(iface string) bool {
	return slices.ContainsFunc(p.Specs, func(s *hierarchy.Spec) bool { return s.Interface == iface })
}
