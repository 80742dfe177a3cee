package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/tc/tctest"
)

// fleetPolicy has interfaces of any name, as those of many machines.
const fleetPolicy = `version = 1
[interface."e[nt]*"]
rate = "8mbit"
ingress = "16mbit"
[interface."e[nt]*".web.api]
rate = "800kbit"
match = [{ proto = "udp", port = 9 }]
[interface."e[nt]*".rest]
rate = "80kbit"
ceil = "80kbit"
qdisc = { kind = "bfifo", limit = "3kb" }
`

// relay answers at a port of the near namespace with what is at a socket, as a reverse proxy
// before an exporter does.
func (n *network) relay(at string, socket scraper) {
	n.Helper()
	var l net.Listener
	if err := n.Near.Do(func() (err error) {
		l, err = net.Listen("tcp", at)
		return err
	}); err != nil {
		n.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "vifshape"})
	proxy.Transport = socket.Transport
	proxy.ErrorLog = log.New(io.Discard, "", 0) // at the end Prometheus is in the midst of it
	s := &http.Server{Handler: proxy}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	n.Cleanup(func() {
		if err := errors.Join(s.Close(), <-ended); !errors.Is(err, http.ErrServerClosed) {
			n.Error(err)
		}
	})
}

// withoutInterface are figures by family, path below the interface and direction, added up.
func (c counted) withoutInterface(all counted) {
	for of, v := range c {
		part := strings.Fields(of)
		_, path, _ := strings.Cut(part[1], "/")
		all[part[0]+" "+path+" "+part[2]] += v
	}
}

// recorded are what the rules that add up come to now, by the family that they are of. Counters
// stand in the place of their rates.
func (o observed) recorded(families []string) counted {
	o.n.Helper()
	var data struct {
		Groups []struct {
			Rules []struct{ Name, Query string }
		}
	}
	o.ask(&data, "rules", nil)
	all, asked := counted{}, map[string]bool{}
	for _, g := range data.Groups {
		for _, r := range g.Rules {
			expr := regexp.MustCompile(`rate\((\w+)\[5m\]\)`).ReplaceAllString(r.Query, "$1")
			for _, f := range families {
				if !strings.HasPrefix(r.Name, "path:"+strings.TrimSuffix(f, "_total")+":") || !strings.Contains(expr, f) {
					continue
				}
				asked[f] = true
				for _, s := range o.query(expr) {
					v, err := strconv.ParseFloat(s.Value[1].(string), 64)
					if err != nil {
						o.n.Fatal(err)
					}
					all[f+" "+s.Metric["path"]+" "+s.Metric["direction"]] = v
				}
			}
		}
	}
	for _, f := range families {
		if !asked[f] {
			o.n.Errorf("no rule adds up %s", f)
		}
	}
	return all
}

// sentOf is what tc says of all that an interface has sent by its tree.
func (n *network) sentOf(iface string) (bytes float64) {
	n.Helper()
	out := tctest.TC(n, n.Near, "-s", "class", "show", "dev", iface)
	m := regexp.MustCompile(`(?s)class htb 71f:1 root .*?Sent (\d+) bytes`).FindStringSubmatch(out)
	if m == nil {
		n.Fatalf("no class of the whole of %s in\n%s", iface, out)
	}
	bytes, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		n.Fatal(err)
	}
	return bytes
}

// TestKernelFleet: a real Prometheus that asks the exporters of ten machines, each a network
// namespace with an agent that applies its policy, adds up their branches as the kernels count
// them, whatever the interfaces are called; and the alerts of a fleet see what is wrong with some.
func TestKernelFleet(t *testing.T) {
	tctest.RequireProgram(t, "prometheus")
	const machines = 10
	var all []*network
	var targets []string
	name := func(i int) string { return []string{"eth0", "enp1s0"}[i%2] }
	for i := range machines {
		n := newNetwork(t)
		if name(i) != n.Dev {
			n.shell("ip link set " + n.Dev + " down && ip link set " + n.Dev + " name " + name(i) + " && ip link set " + name(i) + " up")
		}
		if err := os.MkdirAll(n.enabled(), 0o755); err != nil {
			t.Fatal(err)
		}
		n.policy(filepath.Join("etc", "vifshape", "fleet.toml"), fleetPolicy)
		a := n.agent("--policies", n.enabled())
		defer a.end(os.Interrupt)
		s, exporter := n.startExporter()
		defer func() {
			s.CloseIdleConnections()
			if err := exporter.Process.Signal(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
			if out := exporter.wait(); out.code != 0 {
				t.Errorf("the exporter: %v", out)
			}
		}()
		at := fmt.Sprintf("127.0.0.1:%d", 9101+i)
		targets = append(targets, strconv.Quote(at))
		all = append(all, n)
		all[0].relay(at, s)
	}
	o, end := all[0].prometheus("# - fleet.yml", "- fleet.yml", `["127.0.0.1:9719"]`, "["+strings.Join(targets, ", ")+"]")
	defer end()

	all[0].until("all machines", func() bool { return len(o.query("count(vifshape_build_info) == 10")) == 1 })

	// What is sent differs from machine to machine; three of them are silent.
	packets := 0.0
	for i, n := range all[:7] {
		send := func(to netip.AddrPort, size int) (sent float64) {
			t.Helper()
			if err := n.Near.Do(func() error {
				c, err := new(net.Dialer).DialContext(context.Background(), "udp", to.String())
				if err != nil {
					return err
				}
				defer c.Close()
				for range 10 * (i + 1) {
					if _, err := c.Write(make([]byte, size)); err == nil { // nobody listens, of which the next one is told
						sent++
					}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			return sent
		}
		packets += send(netip.AddrPortFrom(n.Far4, 9), 200)
		send(netip.AddrPortFrom(n.Far4, 10), 1000)
	}

	families := []string{"vifshape_branch_bytes_total", "vifshape_branch_packets_total", "vifshape_branch_dropped_packets_total",
		"vifshape_branch_backlog_bytes", "vifshape_branch_rate_bytes_per_second", "vifshape_branch_ceil_bytes_per_second"}
	var want, got counted
	var byTC float64
	defer func() {
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("what Prometheus adds up (-show +Prometheus):\n%s", d)
		}
	}()
	line := "vifshape_branch_bytes_total  send"
	all[0].until("what all machines say", func() bool {
		want, byTC = counted{}, 0
		for i, n := range all {
			n.countedByShow().withoutInterface(want)
			byTC += n.sentOf(name(i))
		}
		maps.DeleteFunc(want, func(of string, _ float64) bool { return strings.HasPrefix(of, "vifshape_branch_overlimits_total ") })
		got = o.recorded(families)
		return maps.Equal(want, got) && got[line] == byTC
	})
	t.Logf("sent by all: %.0f bytes; by web/api: %.0f; dropped by rest: %.0f", byTC, got["vifshape_branch_bytes_total web/api send"], got["vifshape_branch_dropped_packets_total rest send"])
	if is := got["vifshape_branch_packets_total web/api send"]; is != packets {
		t.Errorf("web/api has sent %v packets, and not %v", is, packets)
	}
	if is := got["vifshape_branch_ceil_bytes_per_second web/api send"]; is != machines*1e6 {
		t.Errorf("the ceilings of web/api come to %v", is)
	}
	if got["vifshape_branch_dropped_packets_total rest send"] == 0 {
		t.Error("nothing was dropped")
	}

	all[0].until("the rate of all", func() bool {
		return len(o.query(`path:vifshape_branch_bytes:rate5m{path="web/api",direction="send"} > 0`)) == 1
	})
	all[0].until("every rule", func() bool { return o.healthy(t) == 8+14 })
	t.Run("dashboard", func(t *testing.T) {
		if asked, variables := o.dashboard(t, "fleet.json"); asked < 10 || variables != 1 {
			t.Errorf("the dashboard asks %d things, by %d variables", asked, variables)
		}
	})

	// Two machines lose their trees: 20% are not shaped. What is over half of them and not all is uneven.
	for i, n := range all[:2] {
		n.shell("tc qdisc del dev " + name(i) + " root")
	}
	all[0].until("the alert", func() bool {
		return len(o.query(`ALERTS{alertname="VifshapeFleetNotShaped"}`)) == 1 && len(o.query(`count(vifshape_interface_shaped == 0) == 2`)) == 1
	})
	for i := range all[:2] {
		all[i].ok("clear")
	}
	all[0].until("the other alert", func() bool {
		return len(o.query(`ALERTS{alertname="VifshapeFleetUneven",path="web/api"}`)) == 1
	})
}
