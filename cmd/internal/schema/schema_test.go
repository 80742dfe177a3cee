package schema_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/cmd/internal/schema"
	"github.com/vifshape/vifshape/hierarchy"
)

type inner struct {
	Rate hierarchy.Bandwidth `json:"rate"`
	Size hierarchy.Size      `json:"size,omitempty"`
}

type embedded struct {
	Name string `json:"name"`
}

type all struct {
	*embedded
	inner
	ID      hierarchy.ClassID    `json:"id"`
	Sending *hierarchy.Bandwidth `json:"sending,omitempty"`
	Wait    time.Duration        `json:"wait"`
	List    []inner              `json:"list"`
	Maybe   []inner              `json:"maybe,omitempty"`
	Any     any                  `json:"any,omitempty"`
	Link    inner                `json:"link,omitzero"`
	Flag    bool                 `json:"flag"`
	Hidden  string               `json:"-"`
	private int
}

// TestWrite holds that quantities are numbers beside their text, and that all else
// is as encoding/json has it.
func TestWrite(t *testing.T) {
	sending := hierarchy.Bandwidth(1500)
	v := &all{inner: inner{20 * hierarchy.Mbit, 0}, ID: hierarchy.ID(1), Sending: &sending, Wait: 1500 * time.Millisecond,
		List: []inner{}, Any: &inner{hierarchy.Mbit, 1600}, private: 1}
	want := `{
  "rate": "20mbit",
  "rate_bps": 20000000,
  "id": "71f:1",
  "sending": "1500bit",
  "sending_bps": 1500,
  "wait": "1.5s",
  "wait_seconds": 1.5,
  "list": [],
  "any": {
    "rate": "1mbit",
    "rate_bps": 1000000,
    "size": "1600b",
    "size_bytes": 1600
  },
  "flag": false
}
`
	var got strings.Builder
	if err := schema.Write(&got, v); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got.String()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	type plain struct {
		*embedded
		A []string
		B map[string]int
		C *int           `json:"c"`
		D []byte         `json:"d,omitempty"`
		E string         `json:"e"`
		F hierarchy.Path `json:"f,omitempty"`
	}
	for _, v := range []any{nil, 1, "a<b>&\u2028", []string{"x"}, plain{}, plain{embedded: &embedded{"n"}, A: []string{}, B: map[string]int{"b": 1}, E: "<", F: "eth0/web"}} {
		var want, got strings.Builder
		enc := json.NewEncoder(&want)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		if err := enc.Encode(v); err != nil {
			t.Fatal(err)
		}
		if err := schema.Write(&got, v); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want.String(), got.String()); d != "" {
			t.Errorf("%v (-want +got):\n%s", v, d)
		}
	}
}
