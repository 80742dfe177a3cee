package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/match"
)

// otherKeys are names of keys of a match that people bring along from other tools.
var otherKeys = []struct{ from, to string }{
	{"src", "from"}, {"source", "from"}, {"saddr", "from"}, {"srcip", "from"}, {"src_ip", "from"}, {"source_address", "from"},
	{"dst", "to"}, {"dest", "to"}, {"destination", "to"}, {"daddr", "to"}, {"dstip", "to"}, {"dst_ip", "to"}, {"destination_address", "to"},
	{"ip", "host"}, {"ip6", "host"}, {"ipv4", "host"}, {"ipv6", "host"}, {"net", "host"}, {"network", "host"}, {"subnet", "host"}, {"address", "host"}, {"addr", "host"}, {"hosts", "host"},
	{"srcmac", "mac"}, {"dstmac", "mac"}, {"ether", "mac"}, {"hwaddr", "mac"},
	{"protocol", "proto"}, {"protocols", "proto"}, {"l4proto", "proto"}, {"ip_proto", "proto"},
	{"ports", "port"},
	{"sports", "sport"}, {"src_port", "sport"}, {"srcport", "sport"}, {"source_port", "sport"},
	{"dports", "dport"}, {"dst_port", "dport"}, {"dstport", "dport"}, {"destination_port", "dport"},
	{"tos", "dscp"}, {"dsfield", "dscp"}, {"diffserv", "dscp"},
	{"fwmark", "mark"}, {"marks", "mark"}, {"fw", "mark"}, {"nfmark", "mark"},
	{"vlan_id", "vlan"}, {"vid", "vlan"}, {"vlans", "vlan"},
}

// matchKey is the key of a match that a name in lower case is, or is elsewhere called so;
// empty: none.
func matchKey(name string) string {
	if slices.Contains(match.Keys(), name) {
		return name
	}
	name = strings.ReplaceAll(name, "-", "_")
	for _, o := range otherKeys {
		if o.from == name {
			return o.to
		}
	}
	return ""
}

// matchPlace is where a match stands in the file, and the values of its keys.
type matchPlace struct {
	off    int
	inline bool // a value stands at off
	keys   map[string]int
}

// of is the place of a key, or of the whole, and whether a value stands there.
func (p matchPlace) of(key string) (off int, value bool) {
	if off, ok := p.keys[key]; ok {
		return off, true
	}
	return p.off, p.inline
}

// matchTable is one table of a list as it stands in the file: entries are those of its
// keys.
type matchTable struct {
	off     int
	values  map[string]any
	entries []int
}

const matchExample = `match = [{ to = "10.0.0.0/8", dport = 443 }]`

// matches reads the list of a branch's matches, the first entry of which is at hand.
func (r *reader) matches(n *node, v any) {
	var list []any
	switch l := v.(type) {
	case []map[string]any:
		for _, t := range l {
			list = append(list, t)
		}
	case []any:
		list = l
	case map[string]any:
		hint := "write " + header(n, "match") + " in double brackets, once for each"
		if r.index.entries[r.at].val >= 0 {
			hint = "put it into brackets: " + matchExample
		}
		r.value(n, "match", "match is a table, but must be a list of tables", hint)
		return
	default:
		r.value(n, "match", fmt.Sprintf("match is %s, but must be a list of tables", describe(v)), "write "+matchExample)
		return
	}
	if len(list) == 0 {
		r.value(n, "match", "match is an empty list, which fits no packet", "write "+matchExample+", or leave it out")
		return
	}
	inline := r.index.entries[r.at].val >= 0
	tables := r.matchTables(list)
	for i, x := range list {
		t := tables[i]
		if t.values == nil {
			r.add(mistake{off: t.off, path: n.path, key: "match", value: true, msg: fmt.Sprintf("a match is %s, but must be a table", describe(x)), hint: "write " + matchExample})
			continue
		}
		if m, keys, ok := r.match(n, t); ok {
			n.branch.Match, n.match = append(n.branch.Match, m), append(n.match, matchPlace{t.off, inline, keys})
		}
	}
}

// matchTables finds the tables of a list whose first entry is at hand: between brackets,
// or each below a header of its own.
func (r *reader) matchTables(list []any) []matchTable {
	tables := make([]matchTable, len(list))
	for i, x := range list {
		tables[i].values, _ = x.(map[string]any)
	}
	x, e := r.index, r.at
	if val := int(x.entries[e].val); val >= 0 {
		offs := x.elements(val)
		for i := range tables {
			tables[i].off = offs[i]
		}
		end := val + len(x.value(val))
		for j := e + 1; j < len(x.entries) && int(x.entries[j].key) < end; j++ {
			if int(x.entries[j].parent) != e {
				continue
			}
			i, ok := slices.BinarySearch(offs, int(x.entries[j].key))
			if !ok {
				i--
			}
			tables[i].entries = append(tables[i].entries, j)
		}
		return tables
	}
	for i, h := range r.headed(r.keys[e])[:len(tables)] {
		tables[i].off, _ = x.part(h, len(r.keys[h])-1, len(r.keys[h]))
		for j := h + 1; j < len(x.entries) && x.entries[j].parent >= int32(h); j++ {
			if int(x.entries[j].parent) == h {
				tables[i].entries = append(tables[i].entries, j)
			}
		}
	}
	return tables
}

// headed are the entries of the headers of a list of matches.
func (r *reader) headed(key toml.Key) []int {
	if r.headers == nil {
		r.headers = map[string][]int{}
		for i, k := range r.keys {
			if r.index.entries[i].val < 0 && k[len(k)-1] == "match" {
				id := strings.Join(k, "\x00")
				r.headers[id] = append(r.headers[id], i)
			}
		}
	}
	return r.headers[strings.Join(key, "\x00")]
}

// match reads one match, and where the values of its keys stand. Ok is false where
// something is wrong with it.
func (r *reader) match(n *node, t matchTable) (m match.Match, keys map[string]int, ok bool) {
	defer func(at, found int) {
		r.at = at
		ok = len(r.found) == found
	}(r.at, len(r.found))
	table := &node{path: n.path, within: "match.", depth: n.depth + 1}
	keys = map[string]int{}
	left := maps.Clone(t.values)
	for _, e := range t.entries {
		name := r.keys[e][table.depth]
		v, there := left[name]
		if !there {
			continue // what is written in parts is one value
		}
		delete(left, name)
		r.at = e
		if !slices.Contains(match.Keys(), name) {
			r.noMatchKey(table, name)
			continue
		}
		keys[name] = int(r.index.entries[e].val)
		r.matchValues(table, &m, name, v)
	}
	for _, name := range slices.Sorted(maps.Keys(left)) { // a table with a header of its own
		r.add(mistake{off: t.off, path: n.path, key: "match." + name, msg: fmt.Sprintf("unknown table %q in a match", name), hint: "known here are " + strings.Join(match.Keys(), ", ")})
	}
	return m, keys, ok
}

// noMatchKey reports a key that a match does not have.
func (r *reader) noMatchKey(table *node, name string) {
	lower := strings.ToLower(name)
	var hint string
	switch key := matchKey(lower); {
	case key == lower:
		hint = fmt.Sprintf("keys are written in lower case: %s", lower)
	case key != "":
		hint = fmt.Sprintf("it is called %s here", key)
	case slices.Contains([]string{"not", "except", "exclude"}, lower):
		hint = "give what is excepted a more specific match in a branch of its own"
	case slices.Contains([]string{"cgroup", "unit", "user", "process", "pid"}, lower):
		hint = `who sends stands beside match: bind = ["unit:nginx.service"]`
	case where(name)&levelBranch != 0:
		hint = fmt.Sprintf("%s belongs to the branch: move it out of match", name)
	case hierarchy.Nearest(name, match.Keys()) != "":
		hint = fmt.Sprintf("did you mean %q?", hierarchy.Nearest(name, match.Keys()))
	default:
		hint = "known here are " + strings.Join(match.Keys(), ", ")
	}
	r.key(table, name, fmt.Sprintf("unknown key %q", name), hint)
}

// matchValues reads the values of one key of a match: one, or a list.
func (r *reader) matchValues(table *node, m *match.Match, key string, v any) {
	list, isList := v.([]any)
	if _, ok := literal(v); ok {
		list = []any{v}
	} else if !isList {
		r.value(table, key, fmt.Sprintf("%s is %s, but must be a value or a list of values", key, describe(v)), "write "+matchExample)
		return
	}
	if len(list) == 0 {
		r.value(table, key, key+" is an empty list, which fits nothing", "leave it out if it does not matter, or write a value")
		return
	}
	for i, x := range list {
		text, ok := literal(x)
		msg := fmt.Sprintf("a value of %s is %s, but must be a string or a number", key, describe(x))
		if ok {
			err := m.Add(key, text)
			if err == nil {
				continue
			}
			msg = err.Error()
		}
		off := int(r.index.entries[r.at].val)
		if isList {
			off = r.element(r.at, i)
		}
		r.add(mistake{off: off, path: table.path, key: table.within + key, value: true, msg: msg})
	}
}
