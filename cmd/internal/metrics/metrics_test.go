package metrics_test

import (
	"io"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/cmd/internal/metrics"
)

func TestPage(t *testing.T) {
	for _, tt := range []struct {
		name string
		page func(*metrics.Page)
		want string
	}{
		{"nothing", func(p *metrics.Page) {}, ""},
		{"a family without samples", func(p *metrics.Page) {
			p.Family("a_total", metrics.Counter, "All of it.")
		}, ""},
		{"none between two", func(p *metrics.Page) {
			p.Family("a_total", metrics.Counter, "All of it.")
			p.Count("", 1)
			p.Family("b", metrics.Gauge, "Nobody has it.")
			p.Family("c", metrics.Gauge, "What there is.")
			p.Sample("", 0.5)
		}, "# HELP a_total All of it.\n# TYPE a_total counter\na_total 1\n# HELP c What there is.\n# TYPE c gauge\nc 0.5\n"},
		{"labels serve families", func(p *metrics.Page) {
			l := metrics.LabelsOf("interface", "eth0", "branch", "eth0/web")
			p.Family("a_total", metrics.Counter, "All.")
			p.Count(l, 3)
			p.Count(metrics.LabelsOf("interface", "eth1"), 4)
			p.Family("b", metrics.Gauge, "Now.")
			p.Sample(l, 5)
		}, "# HELP a_total All.\n# TYPE a_total counter\na_total{interface=\"eth0\",branch=\"eth0/web\"} 3\na_total{interface=\"eth1\"} 4\n# HELP b Now.\n# TYPE b gauge\nb{interface=\"eth0\",branch=\"eth0/web\"} 5\n"},
		{"escapes", func(p *metrics.Page) {
			p.Family("a", metrics.Gauge, "A \\ and a\nline, \"quoted\".")
			p.Count(metrics.LabelsOf("b", "a\\n \"q\"\nend", "c", "\xff.é\u202e"), 0)
		}, "# HELP a A \\\\ and a\\nline, \"quoted\".\n# TYPE a gauge\na{b=\"a\\\\n \\\"q\\\"\\nend\",c=\"\ufffd.é\u202e\"} 0\n"},
		{"numbers", func(p *metrics.Page) {
			p.Family("a", metrics.Gauge, "N.")
			p.Count("", math.MaxUint64)
			p.Sample("", 1.25e9)
			p.Sample("", math.Inf(1))
			p.Sample("", 12.5)
		}, "# HELP a N.\n# TYPE a gauge\na 18446744073709551615\na 1250000000\na +Inf\na 12.5\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b strings.Builder
			p := metrics.NewPage(&b)
			tt.page(p)
			if err := p.End(); err != nil {
				t.Error(err)
			}
			if d := cmp.Diff(tt.want, b.String()); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestLabelsOf(t *testing.T) {
	if l := metrics.LabelsOf(); l != "" {
		t.Errorf("no labels are %q", l)
	}
}

// What cannot be written shows at the end.
func TestPageFails(t *testing.T) {
	r, w := io.Pipe()
	r.CloseWithError(io.ErrShortWrite)
	p := metrics.NewPage(w)
	p.Family("a", metrics.Gauge, "A.")
	for range 10000 {
		p.Sample("", 0.125)
	}
	if err := p.End(); err != io.ErrShortWrite {
		t.Errorf("%v", err)
	}
}
