package record

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/hierarchy/emulate"
	"github.com/vifshape/vifshape/tc/foreign"
)

// full has something in every field that is written, with letters that JSON has to escape.
func full() *Record {
	prio := uint8(3)
	return &Record{
		Version: Version, Interface: "eth0", Index: 7, MTU: 1500, Link: hierarchy.Gbit, Policy: "/etc/\"p\"\\ <é\x01>.toml", Selector: hierarchy.DefaultRoute, Binding: "auto", Way: bind.WayBPF, Receives: true, Matches: true,
		IDs:   hierarchy.IDs{Minors: map[string]uint16{"web/": 16, "web/a": 0xfffe}, Retired: []hierarchy.Retired{{Key: "x", Minor: 18}}, Named: map[string]hierarchy.Named{"web": {Origin: "old", From: "old", Now: "x"}}},
		Order: []hierarchy.Path{"eth0", "eth0/web", "eth0/web/a"},
		Bindings: []Binding{
			{Path: "eth0/web/a", Binding: bind.Binding{Kind: bind.User, Name: "a"}, AtRuntime: true, Limit: true},
			{Path: "eth0/web/a", Binding: bind.Binding{Kind: bind.User, Name: "b"}},
		},
		Bound: []hierarchy.Bound{
			{Target: bind.ToUser(1000), Class: hierarchy.ID(0xfffe), Path: "eth0/web/a", Open: true, Stays: true, From: "user:a"},
			{Path: "eth0/web/a", From: "user:b"},
		},
		Formerly:  []string{"lan0", "lan1"},
		Former:    foreign.Former{Kind: "fq_codel", Handle: hierarchy.ID(1), Options: []byte{255, 1, 0}, Partial: true},
		Delegated: []Delegated{{"eth0/web", []bind.Delegate{"uid:1000", "alice"}}},
		Added: []amend.Branch{{Path: "eth0/web/a", Rate: hierarchy.Absolute(hierarchy.Mbit), Ingress: hierarchy.Absolute(hierarchy.Kbit), Prio: &prio, Qdisc: "fq", By: 1000}, {
			Path: "eth0/x", Limit: "user:b", Down: hierarchy.Absolute(hierarchy.Mbit), Bind: []bind.Binding{{Kind: bind.User, Name: "b"}}, Program: "b",
			Holder: &amend.Holder{PID: 7, Start: time.Hour, Cgroup: "/b"}, Link: &emulate.Link{Down: hierarchy.Mbit, Delay: time.Second}, Pod: "b",
		}},
		Serial: 3, Applied: time.Date(2026, 11, 28, 15, 0, 0, 0, time.UTC), By: "alice (root)", Boot: 5 * time.Hour,
	}
}

// What is written is what is read, and what encoding/json reads. A field that is new is in
// full, or this fails.
func TestDecode(t *testing.T) {
	unset(t, "Record", reflect.ValueOf(*full()))
	for name, r := range map[string]*Record{"full": full(), "empty": {Version: Version, Interface: "eth0"}} {
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var wide bytes.Buffer
		if err := json.Indent(&wide, b, "\r\n", "\t "); err != nil {
			t.Fatal(err)
		}
		unknown := bytes.Replace(b, []byte("{"), []byte(`{"later":[{"a":"]}\"","b":[1e3,null,true]}],`), 1)
		for form, text := range map[string][]byte{"as written": b, "indented": wide.Bytes(), "with what is not known": unknown} {
			var got, want Record
			if err := json.Unmarshal(text, &want); err != nil {
				t.Fatal(err)
			}
			if err := got.decode(text); err != nil {
				t.Errorf("%s, %s: %v", name, form, err)
			}
			for _, want := range []*Record{r, &want} {
				if d := cmp.Diff(want, &got, cmp.AllowUnexported(hierarchy.Amount{})); d != "" {
					t.Errorf("%s, %s (-want +got):\n%s", name, form, d)
				}
			}
		}
	}
}

// unset fails for a field that has its zero value in every element of v, but for those that
// are not written.
func unset(t *testing.T, name string, v reflect.Value) {
	t.Helper()
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if f.IsExported() && f.Tag.Get("json") != "-" && f.Type != reflect.TypeFor[bind.Target]() && f.Type != reflect.TypeFor[bind.Binding]() && f.Type != reflect.TypeFor[[]amend.Branch]() {
				unset(t, name+"."+f.Name, v.Field(i))
			}
		}
	case reflect.Slice:
		if v.Len() > 0 {
			unset(t, name, v.Index(0))
			return
		}
		fallthrough
	default:
		if v.IsZero() {
			t.Errorf("%s has nothing in it", name)
		}
	}
}

// What encoding/json refuses is refused.
func TestDecodeDamaged(t *testing.T) {
	for _, text := range []string{
		"", "{", "[]", "null x", `{"version":"4"}`, `{"version":4.5}`, `{"ifindex":-1}`, `{"ifindex":4294967296}`, `{"policy":1}`,
		`{"ids":[]}`, `{"ids":{"minors":{"a":65536}}}`, `{"ids":{"minors":{"a":"1"}}}`, `{"order":{}}`, `{"order":[1]}`, `{"bindings":[1]}`,
		`{"bindings":[{"at_runtime":"true"}]}`, `{"bound":[{"classid":"x"}]}`, `{"bound":[{"target":"x"}]}`, `{"former":{"options":"*"}}`,
		`{"applied":"x"}`, `{"added":1}`, `{"delegated":[{"to":["/"]}]}`, `{"order":["a}`,
	} {
		var r Record
		if err := json.Unmarshal([]byte(text), &r); err == nil {
			t.Errorf("encoding/json takes %q", text)
		}
		if err := new(Record).decode([]byte(text)); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// FuzzDecode holds that what is read is, once it is written, what encoding/json reads.
func FuzzDecode(f *testing.F) {
	b, err := json.Marshal(full())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(` { "order" : [ "a" , "b\u00e9" ] , "x" : [ { } , [ ] , -1.5e+3 , null ] } `))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r, got, want Record
		if r.decode(b) != nil {
			return
		}
		text, err := json.Marshal(&r)
		if err != nil {
			return // a value that has no form in text
		}
		failed, err := json.Unmarshal(text, &want), got.decode(text)
		if (failed == nil) != (err == nil) {
			t.Fatalf("%s: %v, and encoding/json says %v", text, err, failed)
		}
		if err == nil && !cmp.Equal(want, got, cmp.AllowUnexported(hierarchy.Amount{})) {
			t.Errorf("%s: %s", text, cmp.Diff(want, got, cmp.AllowUnexported(hierarchy.Amount{})))
		}
	})
}
