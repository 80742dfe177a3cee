package policy

import (
	"cmp"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/vifshape/vifshape/hierarchy"
)

// Place is where a key of an interface or branch stands: in which file, and there as a line and
// a column from 1. Where the key is not written it is the place of the value or table
// that takes its place ("ingress" for "ingress.rate"), or of the branch, and where that
// is not either, as with a rest that was added, of the one above it. An empty path is
// the top of the file. Line 0: nothing of it is in the file.
func (p *Policy) Place(path hierarchy.Path, key string) (file string, line, column int) {
	off := p.offset(path, key)
	if off < 0 {
		return p.file, 0, 0
	}
	n, start, _ := p.index.line(off)
	file, before := p.index.of(off)
	return cmp.Or(file, p.file), n - before, p.index.column(start, off)
}

// offset is the place as an offset, negative where nothing of it is in the file.
func (p *Policy) offset(path hierarchy.Path, key string) int {
	table := toml.Key{}
	if path != "" {
		table = append(toml.Key{"interface"}, strings.Split(string(path), "/")...)
	}
	var wants []toml.Key
	for k := strings.Split(key, "."); len(k) > 0; k = k[:len(k)-1] {
		wants = append(wants, append(slices.Clone(table), k...))
	}
	for ; len(table) > 0; table = table[:len(table)-1] {
		wants = append(wants, slices.Clone(table))
	}
	for _, want := range wants {
		i := slices.IndexFunc(p.keys, func(k toml.Key) bool { return slices.Equal(k, want) })
		if i < 0 {
			continue
		}
		off, _ := p.index.part(i, len(want)-1, len(want))
		if val := p.index.entries[i].val; val >= 0 {
			off = int(val)
		}
		return off
	}
	return -1
}

// Wrong are mistakes that only a machine brings to light, as what does not fit onto its link, in
// what the policy says of the interfaces that a selector fits; nil: only warnings.
func (p *Policy) Wrong(by hierarchy.Selector, problems []hierarchy.Problem) error {
	r := report{file: p.file, index: p.index}
	for _, x := range problems {
		if x.Warning {
			continue
		}
		_, below, _ := strings.Cut(string(x.Path), "/")
		at := hierarchy.Path(strings.TrimSuffix(string(by)+"/"+below, "/"))
		r.add(mistake{off: max(0, p.offset(at, x.Key)), path: x.Path, key: x.Key, msg: x.Text, hint: x.Hint})
	}
	if len(r.found) == 0 {
		return nil
	}
	return r.errs()
}
