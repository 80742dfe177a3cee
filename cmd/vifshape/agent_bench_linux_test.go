package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/tctest"
)

// quantile is the value that a part of all, sorted, is not above.
func quantile(all []time.Duration, part float64) time.Duration {
	slices.Sort(all)
	return all[min(len(all)-1, int(part*float64(len(all))))]
}

// BenchmarkAgentRestart is how long a unit that is started anew, and sends at once,
// is in the rest.
func BenchmarkAgentRestart(b *testing.B) {
	n := newNetwork(b)
	n.built()
	slice := systemSlice(b)
	svc := strings.TrimSuffix(filepath.Join(slice, filepath.Base(slice)), ".slice") + ".service"
	n.ok("apply", n.policy("policy.toml", fmt.Sprintf(agentPolicy, "unit:"+filepath.Base(svc))))
	if err := os.Mkdir(svc, 0o755); err != nil {
		b.Fatal(err)
	}
	n.agent()
	s := n.service(svc)
	const count, pause = 500, 50 * time.Microsecond
	rests := func() (c int) {
		n.device(func(d *tc.Device) error {
			all, err := d.Stats()
			for _, x := range all {
				if x.Class == hierarchy.ID(hierarchy.RestMinor) {
					c = int(x.Packets)
				}
			}
			return err
		})
		return c
	}
	var took, inRest []time.Duration // from when the cgroup was made, and from the first datagram
	var packets []int
	late := 0
	want := map[string]hierarchy.Path{n.target(svc): "eth0/web"}
	for b.Loop() {
		before := rests()
		sent := s.send(count, pause, true)
		rest := rests() - before
		if rest == count { // it took longer
			late++
			rest--
		}
		n.bound(want)
		took, inRest, packets = append(took, sent[rest]), append(inRest, sent[rest]-sent[0]), append(packets, rest)
	}
	slices.Sort(packets)
	b.ReportMetric(ms(quantile(inRest, 0.5)), "ms-in-rest-median")
	b.ReportMetric(ms(quantile(inRest, 0.99)), "ms-in-rest-p99")
	b.ReportMetric(ms(quantile(took, 0.5)), "ms-from-mkdir-median")
	b.ReportMetric(ms(quantile(took, 0.99)), "ms-from-mkdir-p99")
	b.ReportMetric(float64(packets[len(packets)/2]), "packets-median")
	b.ReportMetric(float64(packets[len(packets)-1]), "packets-most")
	b.ReportMetric(float64(late), "not-bound-at-the-end")
}

// BenchmarkAgentBurst is how long 1,000 cgroups take that appear one after the other
// as fast as they can be made, until the last one is bound.
func BenchmarkAgentBurst(b *testing.B) {
	const many = 1000
	n := newNetwork(b)
	n.built()
	base := tctest.Cgroup(b)
	n.ok("apply", n.policy("policy.toml", fmt.Sprintf(agentPolicy, n.target(base)+"/w*")))
	a := n.agent()
	var making, all []time.Duration
	for b.Loop() {
		start := time.Now()
		for i := range many {
			if err := os.Mkdir(fmt.Sprintf("%s/w%d", base, i), 0o755); err != nil {
				b.Fatal(err)
			}
		}
		making = append(making, time.Since(start))
		for len(n.targets()) < many {
			time.Sleep(10 * time.Millisecond)
		}
		all = append(all, time.Since(start))
		for i := range many {
			if err := unix.Rmdir(fmt.Sprintf("%s/w%d", base, i)); err != nil {
				b.Fatal(err)
			}
		}
		for len(n.targets()) > 0 {
			time.Sleep(10 * time.Millisecond)
		}
	}
	a.end(syscall.SIGTERM)
	cpu := a.ProcessState.UserTime() + a.ProcessState.SystemTime()
	b.ReportMetric(ms(quantile(making, 0.5)), "ms-making")
	b.ReportMetric(ms(quantile(all, 0.5)), "ms-bound")
	b.ReportMetric(ms(cpu)/float64(len(all)), "ms-cpu/op")
}
