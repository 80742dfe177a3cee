package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/cmd/internal/exporter"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// scraper asks an exporter at a socket.
type scraper struct{ *http.Client }

func newScraper(file string) scraper {
	return scraper{&http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", file)
	}}}}
}

// page is what it answers.
func (s scraper) page(n *network) string {
	n.Helper()
	r, err := s.Get("http://vifshape/metrics")
	if err != nil {
		n.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		n.Fatalf("%s, %v: %s", r.Status, err, b)
	}
	return string(b)
}

// startExporter starts an exporter, and waits until it listens.
func (n *network) startExporter() (scraper, *running) {
	n.Helper()
	file := filepath.Join(n.dir, "e.sock")
	r := n.start(n.command("exporter", "--listen", "unix:"+file))
	n.until("the exporter", func() bool {
		c, err := net.Dial("unix", file)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return newScraper(file), r
}

// exporter starts an exporter, and waits until it listens. What is returned ends it.
func (n *network) exporter() (s scraper, end func() *os.ProcessState) {
	n.Helper()
	s, r := n.startExporter()
	return s, func() *os.ProcessState {
		n.Helper()
		s.CloseIdleConnections()
		if err := r.Process.Signal(syscall.SIGTERM); err != nil {
			n.Error(err)
		}
		if out := r.wait(); out.code != 0 || out.stderr != "" {
			n.Errorf("the exporter: %v", out)
		}
		return r.ProcessState
	}
}

// observed is the Prometheus of Debian in the near namespace, with the configuration of
// examples/prometheus in haste. It asks the exporter there.
type observed struct {
	n      *network
	client *http.Client
}

const prometheusExamples = "../../examples/prometheus"

// prometheus starts it, with texts of its configuration in the place of others, old and new in
// turns. What is returned ends it.
func (n *network) prometheus(otherwise ...string) (o observed, end func()) {
	n.Helper()
	otherwise = append(otherwise, "_interval: 15s", "_interval: 200ms", " interval: 1m", " interval: 200ms")
	for _, name := range []string{"prometheus.yml", "alerts.yml", "fleet.yml"} {
		text, err := os.ReadFile(filepath.Join(prometheusExamples, name))
		if err != nil {
			n.Fatal(err)
		}
		n.policy(name, strings.NewReplacer(otherwise...).Replace(string(text)))
	}
	const at = "127.0.0.1:9090"
	c := exec.Command("prometheus", "--config.file", filepath.Join(n.dir, "prometheus.yml"), "--storage.tsdb.path", filepath.Join(n.dir, "data"), "--web.listen-address", at)
	r := n.start(c)
	o = observed{n, &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (conn net.Conn, err error) {
		failed := n.Near.Do(func() error {
			conn, err = new(net.Dialer).DialContext(ctx, "tcp", at)
			return nil
		})
		return conn, errors.Join(failed, err)
	}}}}
	end = func() {
		o.client.CloseIdleConnections()
		if err := r.Process.Signal(syscall.SIGTERM); err != nil {
			n.Error(err)
		}
		if out := r.wait(); n.Failed() {
			n.Log(out)
		}
	}
	n.until("Prometheus", func() bool {
		a, err := o.client.Get("http://prometheus/-/ready")
		if err == nil {
			a.Body.Close()
		}
		return err == nil && a.StatusCode == http.StatusOK
	})
	return o, end
}

// ask puts what the API answers into data.
func (o observed) ask(data any, path string, query url.Values) {
	o.n.Helper()
	a, err := o.client.Get("http://prometheus/api/v1/" + path + "?" + query.Encode())
	if err != nil {
		o.n.Fatal(err)
	}
	defer a.Body.Close()
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.NewDecoder(a.Body).Decode(&answer); err != nil || answer.Status != "success" {
		o.n.Fatalf("%s %v: %s, %v", path, query, answer.Error, err)
	}
}

// sample is one of what a query finds.
type sample struct {
	Metric map[string]string
	Value  [2]any // the time, and the value as text
}

// query is what an expression comes to now.
func (o observed) query(expr string) []sample {
	o.n.Helper()
	var data struct{ Result []sample }
	o.ask(&data, "query", url.Values{"query": {expr}})
	return data.Result
}

// counted are figures by family, branch and direction.
type counted map[string]float64

// counted is what it knows of families of branches.
func (o observed) counted(families []string) counted {
	o.n.Helper()
	all := counted{}
	for _, f := range families {
		for _, s := range o.query(f) {
			v, err := strconv.ParseFloat(s.Value[1].(string), 64)
			if err != nil {
				o.n.Fatal(err)
			}
			all[f+" "+s.Metric["branch"]+" "+s.Metric["direction"]] = v
		}
	}
	return all
}

// countedByShow is what show says of the same.
func (n *network) countedByShow() counted {
	n.Helper()
	type counts struct {
		Bytes, Packets, Drops, Overlimits uint64
		Backlog                           uint64 `json:"backlog_bytes"`
		Rate                              uint64 `json:"rate_bps"`
		Ceil                              uint64 `json:"ceil_bps"`
	}
	var out struct {
		Interfaces []struct {
			Branches []struct {
				Path string
				Leaf bool
				counts
				Ingress *counts
			}
		}
	}
	if err := json.Unmarshal([]byte(n.ok("show", "--json")), &out); err != nil {
		n.Fatal(err)
	}
	all := counted{}
	for _, i := range out.Interfaces {
		for _, b := range i.Branches {
			for direction, c := range map[string]*counts{"send": &b.counts, "receive": b.Ingress} {
				of := " " + b.Path + " " + direction
				all["vifshape_branch_bytes_total"+of] = float64(c.Bytes)
				all["vifshape_branch_packets_total"+of] = float64(c.Packets)
				all["vifshape_branch_overlimits_total"+of] = float64(c.Overlimits)
				all["vifshape_branch_rate_bytes_per_second"+of] = float64(c.Rate) / 8
				all["vifshape_branch_ceil_bytes_per_second"+of] = float64(c.Ceil) / 8
				if b.Leaf {
					all["vifshape_branch_dropped_packets_total"+of] = float64(c.Drops)
					all["vifshape_branch_backlog_bytes"+of] = float64(c.Backlog)
				}
			}
		}
	}
	return all
}

const prometheusPolicy = `version = 1
[interface.eth0]
rate = "8mbit"
ingress = "16mbit"
[interface.eth0.web.api]
rate = "800kbit"
[interface.eth0.rest]
rate = "80kbit"
ceil = "80kbit"
qdisc = { kind = "bfifo", limit = "3kb" }
`

// TestKernelPrometheus: a real Prometheus that asks the exporter knows what show says, its
// alerts and what the dashboard asks are right, and promtool has nothing to object.
func TestKernelPrometheus(t *testing.T) {
	promtool := tctest.RequireProgram(t, "promtool")
	tctest.RequireProgram(t, "prometheus")
	n := newNetwork(t)
	n.ok("apply", n.policy("policy.toml", prometheusPolicy))
	r := n.start(n.command("exporter", "--listen", "127.0.0.1:9719"))
	defer func() {
		if err := r.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if out := r.wait(); out.code != 0 {
			t.Errorf("the exporter: %v", out)
		}
	}()
	o, end := n.prometheus()
	defer end()

	// The rest is sent more than it may, so that its queue drops; something is received, too.
	send := func(from *lab.NetNS, to netip.Addr) {
		t.Helper()
		if err := from.Do(func() error {
			c, err := net.Dial("udp", netip.AddrPortFrom(to, 9).String())
			if err != nil {
				return err
			}
			defer c.Close()
			for range 100 {
				_, _ = c.Write(make([]byte, 1000)) // nobody listens, of which the next one is told
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	send(n.Near, n.Far4)
	send(n.Far, n.Near4)
	n.until("drops", func() bool {
		return len(o.query(`vifshape_branch_dropped_packets_total{branch="eth0/rest",direction="send"} > 0`)) == 1
	})

	t.Run("dashboard", func(t *testing.T) {
		if asked, variables := o.dashboard(t, "dashboard.json"); asked < 10 || variables != 3 {
			t.Errorf("the dashboard asks %d things, by %d variables", asked, variables)
		}
	})

	families := []string{"vifshape_branch_bytes_total", "vifshape_branch_packets_total", "vifshape_branch_overlimits_total", "vifshape_branch_dropped_packets_total",
		"vifshape_branch_backlog_bytes", "vifshape_branch_rate_bytes_per_second", "vifshape_branch_ceil_bytes_per_second"}
	var want, got counted
	defer func() {
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("what Prometheus knows (-show +Prometheus):\n%s", d)
		}
	}()
	n.until("what show says", func() bool {
		want, got = n.countedByShow(), o.counted(families)
		return maps.Equal(want, got)
	})
	for _, of := range []string{"vifshape_branch_dropped_packets_total eth0/rest send", "vifshape_branch_bytes_total eth0 send", "vifshape_branch_bytes_total eth0/rest receive"} {
		if got[of] == 0 {
			t.Errorf("%s is 0", of)
		}
	}
	if len(got) != 2*(5*4+2*2) { // eth0, web, api and rest, of which two are leaves
		t.Errorf("%d figures", len(got))
	}

	file := n.policy("page", n.page("127.0.0.1:9719"))
	c := exec.Command(promtool, "check", "metrics")
	page, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer page.Close()
	c.Stdin = page
	if out, err := c.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}

	// Each rule works, and that which says that the tree is gone sees it.
	n.until("every rule", func() bool { return o.healthy(t) == 8 })
	root := n.sending().Root
	n.device(func(d *tc.Device) error {
		_, err := d.Do(t.Context(), []hierarchy.Step{{Action: hierarchy.Delete, Old: &root}})
		return err
	})
	n.until("the alert", func() bool {
		return len(o.query(`ALERTS{alertname="VifshapeNotShaped",interface="eth0",severity="critical"}`)) == 1
	})
}

// healthy is how many rules were evaluated without an error.
func (o observed) healthy(t *testing.T) (healthy int) {
	var data struct {
		Groups []struct {
			Rules []struct{ Name, Health, LastError string }
		}
	}
	o.ask(&data, "rules", nil)
	for _, g := range data.Groups {
		for _, r := range g.Rules {
			switch r.Health {
			case "ok":
				healthy++
			case "err":
				t.Errorf("%s: %s", r.Name, r.LastError)
			}
		}
	}
	return healthy
}

// page is what an exporter at an address of the near namespace answers.
func (n *network) page(at string) string {
	n.Helper()
	s := scraper{&http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (c net.Conn, err error) {
		failed := n.Near.Do(func() error {
			c, err = net.Dial("tcp", at)
			return nil
		})
		return c, errors.Join(failed, err)
	}}}}
	return s.page(n)
}

// dashboard asks what a dashboard asks: all of it finds something.
func (o observed) dashboard(t *testing.T, name string) (asked, variables int) {
	text, err := os.ReadFile(filepath.Join(prometheusExamples, name))
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
		Templating struct {
			List []struct {
				Name  string
				Query any
			}
		}
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	words := strings.NewReplacer("$__rate_interval", "1m", "$instance", ".*", "$interface", ".*", "$branch", ".*", "$path", ".*")
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			asked++
			expr := words.Replace(target.Expr)
			if strings.Contains(expr, "$") {
				t.Errorf("%s: what is in %s?", p.Title, expr)
				continue
			}
			o.n.until(p.Title+": "+expr, func() bool { return len(o.query(expr)) > 0 })
		}
	}
	for _, v := range d.Templating.List {
		query, ok := v.Query.(map[string]any)
		if !ok { // the source of all
			continue
		}
		variables++
		expr, label, ok := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(words.Replace(query["query"].(string)), "label_values("), ")"), ", ")
		if all := o.query(expr); !ok || len(all) == 0 || all[0].Metric[label] == "" {
			t.Errorf("%s: %s finds no %s", v.Name, expr, label)
		}
	}
	return asked, variables
}

// TestPrometheusExamples: promtool takes the configuration, and the alerts do what their own
// tests say.
func TestPrometheusExamples(t *testing.T) {
	promtool := tctest.RequireProgram(t, "promtool")
	for _, args := range [][]string{{"check", "config", "prometheus.yml"}, {"check", "rules", "--lint-fatal", "alerts.yml", "fleet.yml"}, {"test", "rules", "alerts_test.yml", "fleet_test.yml"}} {
		c := exec.Command(promtool, args...)
		c.Dir = prometheusExamples
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// exporterUnit: what the unit takes away from the exporter, it has no use for: it sees what root
// sees, and is nobody.
func exporterUnit(h *host) {
	for _, name := range []string{exporterService, exporterSocket} {
		text, err := os.ReadFile("testdata/systemd/" + name)
		if err != nil {
			h.Fatal(err)
		}
		write(h, filepath.Join(unitDir, name), string(text))
	}
	systemctl(h, "daemon-reload")
	h.ok("apply", h.policy("policy.toml", prometheusPolicy))
	defer h.ok("clear")
	defer h.startAgent(agentService)()
	h.ok("exporter", "--textfile", h.dir)
	byRoot, err := os.ReadFile(filepath.Join(h.dir, exporter.File))
	if err != nil {
		h.Fatal(err)
	}
	systemctl(h, "start", exporterSocket)
	defer systemctl(h, "stop", exporterSocket, exporterService)
	page := h.page("127.0.0.1:9719")
	if d := cmp.Diff(names(string(byRoot)), names(page)); d != "" {
		h.Errorf("what it tells (-root +unit):\n%s", d)
	}
	for _, line := range []string{`vifshape_interface_shaped{interface="eth0"} 1`, "vifshape_agent_running 1"} {
		if !strings.Contains(page, "\n"+line+"\n") {
			h.Errorf("no %s in\n%s", line, page)
		}
	}
	status, err := os.ReadFile("/proc/" + h.property(exporterService, "MainPID") + "/status")
	if err != nil {
		h.Fatal(err)
	}
	if s := string(status); strings.Contains(s, "\nUid:\t0\t") || !strings.Contains(s, "\nCapEff:\t0000000000000000\n") {
		h.Errorf("it is\n%s", s)
	}
	h.Log(lastLine(execute(h, "systemd-analyze", "--no-pager", "security", exporterService)))
	if said := execute(h, "journalctl", "--no-pager", "-o", "cat", "-u", exporterService); strings.Contains(said, "vifshape:") {
		h.Errorf("it says:\n%s", said)
	}
}

// names are the samples of a page without their values.
func names(page string) (all []string) {
	for line := range strings.Lines(page) {
		if name, _, ok := strings.Cut(line, " "); ok && name != "#" {
			all = append(all, name)
		}
	}
	return all
}

// BenchmarkExporter10000 is one scrape of 10,000 branches, from the question to the last byte
// of the answer.
func BenchmarkExporter10000(b *testing.B) {
	n := newNetwork(b)
	n.built()
	n.ok("apply", n.policy("many.toml", many(10000, "1mbit")))
	s, end := n.exporter()
	size, runs := 0, 0
	var least time.Duration
	for b.Loop() {
		start := time.Now()
		size = len(s.page(n))
		if took := time.Since(start); least == 0 || took < least {
			least = took
		}
		runs++
	}
	p := end()
	b.ReportMetric(ms(least), "ms-best/op")
	b.ReportMetric(ms(p.UserTime()+p.SystemTime())/float64(runs), "ms-cpu/op")
	b.ReportMetric(float64(size)/1e6, "MB")
	b.ReportMetric(float64(p.SysUsage().(*syscall.Rusage).Maxrss)/1024, "MiB-peak")
}
