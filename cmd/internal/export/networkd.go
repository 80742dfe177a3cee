//go:build linux

package export

import (
	"fmt"
	"strings"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/qdisc"
)

// section is what a kind of qdisc is called in systemd.network(5), and its parameters there.
type section struct {
	name string
	keys map[string]string
}

// sections are those of all kinds that networkd has.
func sections() map[string]section {
	return map[string]section{
		"pfifo":           {"PFIFO", map[string]string{"limit": "PacketLimit"}},
		"bfifo":           {"BFIFO", map[string]string{"limit": "LimitBytes"}},
		"pfifo_head_drop": {"PFIFOHeadDrop", map[string]string{"limit": "PacketLimit"}},
		"sfq":             {"StochasticFairnessQueueing", map[string]string{"perturb": "PerturbPeriodSec"}},
		"pie":             {"PIE", map[string]string{"limit": "PacketLimit"}},
		"hhf":             {"HeavyHitterFilter", map[string]string{"limit": "PacketLimit"}},
		"fq_pie":          {"FlowQueuePIE", map[string]string{"limit": "PacketLimit"}},
		"codel": {"ControlledDelay", map[string]string{
			"limit": "PacketLimit", "target": "TargetSec", "interval": "IntervalSec", "ecn": "ECN", "ce_threshold": "CEThresholdSec",
		}},
		"fq_codel": {"FairQueueingControlledDelay", map[string]string{
			"limit": "PacketLimit", "memory_limit": "MemoryLimitBytes", "flows": "Flows", "target": "TargetSec", "interval": "IntervalSec",
			"quantum": "QuantumBytes", "ecn": "ECN", "ce_threshold": "CEThresholdSec",
		}},
		"fq": {"FairQueueing", map[string]string{
			"limit": "PacketLimit", "flow_limit": "FlowLimit", "quantum": "QuantumBytes", "initial_quantum": "InitialQuantumBytes",
			"maxrate": "MaximumRate", "buckets": "Buckets", "orphan_mask": "OrphanMask", "pacing": "Pacing", "ce_threshold": "CEThresholdSec",
		}},
		"tbf": {"TokenBucketFilter", map[string]string{
			"rate": "Rate", "burst": "BurstBytes", "limit": "LimitBytes", "peakrate": "PeakRate", "mtu": "MTUBytes", "mpu": "MPUBytes",
		}},
		"netem": {"NetworkEmulator", map[string]string{"delay": "DelaySec", "jitter": "DelayJitterSec", "limit": "PacketLimit", "loss": "LossRate", "duplicate": "DuplicateRate"}},
		"cake": {"CAKE", map[string]string{
			"bandwidth": "Bandwidth", "autorate-ingress": "AutoRateIngress", "rtt": "RTTSec", "nat": "NAT", "wash": "Wash", "split-gso": "SplitGSO",
			"raw": "UseRawPacketSize", "overhead": "OverheadBytes", "mpu": "MPUBytes", "fwmark": "FirewallMark", "diffserv": "PriorityQueueingPreset", "flowmode": "FlowIsolationMode",
		}},
	}
}

// Networkd is a file for /etc/systemd/network/ (systemd.network(5), systemd 252) that makes
// the tree for what is sent. What it has no words for is a comment.
func Networkd(s hierarchy.State) string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("# The tree that vifshape made of %s. Put it into the .network file that the interface has.", s.Device)
	p("[Match]\nName=%s", s.Device)
	can, cannot := steps(s)
	received := false
	for _, step := range can {
		if step.Port.Direction == hierarchy.Receive {
			received = true
			continue
		}
		switch i := step.Item().(type) {
		case *hierarchy.Root:
			p("\n[HierarchyTokenBucket]\nParent=root\nHandle=%x\nDefaultClass=%x", i.Handle.Major(), hierarchy.RestMinor)
		case *hierarchy.Class:
			class(p, i)
		case *hierarchy.Leaf:
			leaf(p, i)
		}
	}
	if received {
		p("\n# Left to do: what is received. networkd redirects nothing to an IFB; export --format script does.")
	}
	told(&b, cannot)
	return b.String()
}

func class(p func(string, ...any), c *hierarchy.Class) {
	parent := "root"
	if c.Parent.Minor() != 0 {
		parent = c.Parent.String()
	}
	p("\n# %s\n[HierarchyTokenBucketClass]\nParent=%s\nClassId=%v\nRate=%d\nCeilRate=%d\nBufferBytes=%d\nCeilBufferBytes=%d", c.Path, parent, c.ID, c.Rate, c.Ceil, c.Burst, c.CBurst)
	if c.Quantum != 0 {
		p("QuantumBytes=%d\nPriority=%d", c.Quantum, c.Prio)
	}
	if c.Link.Overhead != 0 {
		p("OverheadBytes=%d", c.Link.Overhead)
	}
	if c.Link.MPU != 0 || c.Link.ATM {
		rest := c.Link
		rest.Overhead = 0
		p("# Not said: %v", rest)
	}
}

func leaf(p func(string, ...any), l *hierarchy.Leaf) {
	s, ok := sections()[l.Qdisc.Kind]
	if !ok {
		p("\n# Not said: the queue of %s, %s", l.Path, qdisc.Text(l.Qdisc))
		return
	}
	p("\n[%s]\nParent=%v\nHandle=%x", s.name, l.Class, l.Class.Minor())
	for _, k := range qdisc.Kinds() {
		if k.Name != l.Qdisc.Kind {
			continue
		}
		for _, x := range l.Qdisc.Params {
			param := k.Param(x.Name)
			if key := s.keys[x.Name]; key != "" && param != nil {
				p("%s=%s", key, value(param, x.Value))
			} else {
				p("# Not said: %s %s", x.Name, qdisc.Value(l.Qdisc.Kind, x.Name, x.Value))
			}
		}
	}
}

// value is a parameter in networkd's words.
func value(param *hierarchy.Param, v uint64) string {
	switch param.Type {
	case hierarchy.Bytes, hierarchy.Rate:
		return fmt.Sprint(v)
	case hierarchy.Duration:
		return time.Duration(v).String()
	case hierarchy.Flag:
		return map[bool]string{true: "yes", false: "no"}[v != 0]
	}
	return param.Format(v)
}
