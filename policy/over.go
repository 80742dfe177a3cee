package policy

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/vifshape/vifshape/hierarchy"
)

// Text is what a file says that is laid over a policy's.
type Text struct {
	Name string // in messages
	io.Reader
}

// OverSuffix is what stands behind the name of a policy's file in that of the directory with what
// is laid over it.
const OverSuffix = ".d"

// Over are the files that are laid over a policy's file, in their order: those of the directory
// that is called as it is with .d behind it, with names that end in .toml, but for hidden ones.
// No such directory is no error.
func Over(file string) (files []string, err error) {
	all, err := os.ReadDir(file + OverSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range all { // by name
		if name := e.Name(); strings.HasSuffix(name, ".toml") && !strings.HasPrefix(name, ".") {
			files = append(files, filepath.Join(file+OverSuffix, name))
		}
	}
	return files, err
}

// document is a file that is decoded and not interpreted.
type document struct {
	*report
	doc  map[string]any
	keys []toml.Key
}

// read decodes a file. The error is of type [Errors] where it is wrong.
func read(t Text, kinds []hierarchy.Kind) (*document, error) {
	data, err := io.ReadAll(io.LimitReader(t, maxInput+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.Name, err)
	}
	if len(data) > maxInput {
		return nil, fmt.Errorf("%s: a policy has at most %v", t.Name, hierarchy.Size(maxInput))
	}
	text := strings.TrimPrefix(string(data), "\ufeff")
	d := &document{report: &report{file: t.Name, index: &index{text: text, stop: -1}}}
	if !d.characters() {
		return nil, d.errs()
	}
	d.index = scan(text)
	if d.index.deep {
		d.add(mistake{off: d.index.stop, msg: fmt.Sprintf("more than %d tables or lists below each other", maxNesting)})
		return nil, d.errs()
	}
	d.doc, d.keys, err = decode(text, d.index.stop)
	var syntax toml.ParseError
	switch {
	case errors.As(err, &syntax):
		d.syntax(syntax)
		d.others(kinds)
		return nil, d.errs()
	case err != nil:
		return nil, fmt.Errorf("%s: %w", t.Name, err)
	case !d.index.agrees(d.keys):
		return nil, fmt.Errorf("%s: the TOML decoder and the position index disagree about this file; please report it as a fault of vifshape", t.Name)
	}
	return d, nil
}

// versioned says whether a file is of a version that is known, as far as it says so: one that is
// laid over another need not.
func (d *document) versioned() bool {
	r := &reader{report: d.report, keys: d.keys, policy: &Policy{}, partly: true}
	r.version(d.doc)
	return len(d.found) == 0
}

// lay makes one document of two: what is a table in both has the keys of both, and all else is
// what the second one says. A qdisc is one value, whose parameters belong to its kind.
func (d *document) lay(over *document) error {
	if len(d.index.text)+len(over.index.text) >= maxInput {
		return fmt.Errorf("%s and what is laid over it: a policy has at most %v", d.file, hierarchy.Size(maxInput))
	}
	replaced := map[string]bool{}
	merge(d.doc, over.doc, nil, replaced)
	in := func(k toml.Key) string { // the value that goes, and that the key is of; empty: it stays
		for n := range k {
			if id := strings.Join(k[:n+1], "\x00"); replaced[id] {
				return id
			}
		}
		return ""
	}
	x := &index{text: d.index.text, stop: -1, sources: d.index.sources}
	if x.sources == nil {
		x.sources = []source{{d.file, 0}}
	}
	if !strings.HasSuffix(x.text, "\n") {
		x.text += "\n"
	}
	start := int32(len(x.text))
	x.text += over.index.text
	x.sources = append(slices.Clip(x.sources), source{over.file, int(start)})

	// What takes the place of something stands where that stood: branches are in the order of
	// their first mention. Entries of the second document are told by numbers behind those of
	// the first.
	first := len(d.keys)
	all, entries := slices.Concat(d.keys, over.keys), slices.Clone(d.index.entries)
	instead := map[string][]int{}
	for i, e := range over.index.entries {
		e.key, e.last = e.key+start, e.last+start
		if e.val >= 0 {
			e.val += start
		}
		if e.parent >= 0 {
			e.parent += int32(first)
		}
		entries = append(entries, e)
		id := in(over.keys[i])
		instead[id] = append(instead[id], first+i)
	}
	var order []int
	for i := range d.keys {
		if id := in(d.keys[i]); id == "" {
			order = append(order, i)
		} else {
			order = append(order, instead[id]...)
			delete(instead, id)
		}
	}
	order = append(order, instead[""]...)
	at := make([]int32, len(all)) // where entries are now
	for to, from := range order {
		at[from] = int32(to)
	}
	var keys []toml.Key
	for _, i := range order {
		e := entries[i]
		if e.parent >= 0 { // what is below something that goes does, too: no parent is missing
			e.parent = at[e.parent]
		}
		keys, x.entries = append(keys, all[i]), append(x.entries, e)
	}
	d.keys, d.index = keys, x
	return nil
}

// merge lays a table over another one, and notes the keys of the values that go by that.
func merge(table, over map[string]any, at toml.Key, replaced map[string]bool) {
	for name, v := range over {
		was, there := table[name]
		from, is := was.(map[string]any)
		with, both := v.(map[string]any)
		key := append(slices.Clone(at), name)
		if is && both && (name != "qdisc" || len(at) < 2) {
			merge(from, with, key, replaced)
			continue
		}
		if there {
			replaced[strings.Join(key, "\x00")] = true
		}
		table[name] = v
	}
}

// parse reads a policy and what is laid over it, without interpreting it.
func parse(texts []Text, kinds []hierarchy.Kind) (*document, error) {
	var all []*document
	var wrong Errors
	for _, t := range texts {
		d, err := read(t, kinds)
		if err == nil && len(texts) > 1 && !d.versioned() {
			err = d.errs()
		}
		var bad Errors
		if errors.As(err, &bad) {
			wrong = append(wrong, bad...)
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	if wrong != nil {
		return nil, wrong
	}
	for _, over := range all[1:] {
		if all[0].doc == nil {
			all[0].doc = map[string]any{}
		}
		if err := all[0].lay(over); err != nil {
			return nil, err
		}
	}
	return all[0], nil
}

// source is a file of an index, and where its text begins.
type source struct {
	file  string
	start int
}

// of is the file that off is in, and the number of its first line less one. Empty: there is one
// file alone.
func (x *index) of(off int) (file string, lines int) {
	if len(x.sources) == 0 {
		return "", 0
	}
	i, found := slices.BinarySearchFunc(x.sources, off, func(s source, off int) int { return cmp.Compare(s.start, off) })
	if !found {
		i--
	}
	n, _, _ := x.line(x.sources[i].start)
	return x.sources[i].file, n - 1
}
