package cgroup

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/bpf"
	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/nft"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Report is what [Probe] found.
type Report struct {
	Privileges error       // those that this process lacks; nil when it has all
	Layout     string      // how the machine uses cgroups, in words
	Ways       []WayReport // all, best first
	Notes      []string    // what else is worth knowing; often empty
}

// WayReport is one way of a [Report].
type WayReport struct {
	Way  bind.Way
	Err  error  // why it cannot be used; nil when it can
	Text string // what it stands on here
	// Weak is what it does not hold that bpf does, each a few words, a colon, and
	// what happens.
	Weak []string
}

// Probe tries what every way needs and changes nothing: programs are loaded and
// let go of again, nothing is mounted or attached. Whether the kernel has the filter
// that a way takes is not asked: that needs an interface, see Lacks in [Config]. Probe
// needs the privileges that a [Binder] needs; without them the report says which are
// missing.
func Probe() Report {
	// the second is for attaching, the first for all else
	r := Report{Privileges: caps.Lacking(unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN), Layout: cgroupfs.Layout()}
	serves := true
	r.add(bind.WayBPF, func() (string, error) {
		return probeV2(bind.WayBPF, func(w bind.Way) error {
			var err error
			serves, err = bpf.Try(w)
			return err
		})
	})
	if r.Ways[0].Err == nil && !serves {
		r.Ways[0].Weak = append(r.Ways[0].Weak, handed+" (the kernel does not describe its types, CONFIG_DEBUG_INFO_BTF)")
	}
	r.add(bind.WayNft, func() (string, error) { return probeV2(bind.WayNft, nft.Try) })
	r.add(bind.WayNetCls, func() (string, error) {
		return probeNetCls(bind.WayNetCls, func(w bind.Way) error { _, err := bpf.Try(w); return err })
	})
	r.add(bind.WayNetClsNft, func() (string, error) { return probeNetCls(bind.WayNetClsNft, nft.Try) })
	r.add(bind.WayClsCgroup, func() (string, error) {
		return probeNetCls(bind.WayClsCgroup, func(bind.Way) error { return nil })
	})
	if caps.Before(5, 15) {
		r.Notes = append(r.Notes, "below Linux 5.15 a process with a net_cls tag has no cgroup v2 for BPF: do not use both")
	}
	return r
}

func (r *Report) add(w bind.Way, probe func() (string, error)) {
	text, err := probe()
	if err == nil { // what was not tried would fail: attaching, mounting, finding maps again
		err = r.Privileges
	}
	r.Ways = append(r.Ways, WayReport{Way: w, Err: err, Text: text, Weak: weak(w)})
}

// handed is what a way does not hold that goes by where a socket was made.
const handed = "sockets of somebody else: what a bound process sends by a listener, connection or socket that was opened outside goes where that is bound"

// weak is measured: TestKernelClasses looks for each of these, and for no other.
func weak(w bind.Way) (text []string) {
	switch w {
	case bind.WayNft:
		text = append(text,
			handed,
			"packet sockets: what they send goes to the rest",
			"answers to connections: what a listener sends before it accepts (SYN-ACK) goes to the rest",
			"closed connections of users: what is still sent for a bound user once the program has closed it goes to the rest",
			"interfaces above: what comes through a VLAN, bridge, bond, macvlan or tunnel above the interface goes to the rest, or where root asks by SO_PRIORITY",
		)
	case bind.WayNetClsNft:
		text = append(text, "other network namespaces: what processes in them send goes to the rest")
	case bind.WayClsCgroup:
		text = append(text, "SO_PRIORITY: root may ask for another class, or for the queue that is not shaped")
	}
	if w.Tagged() {
		text = append(text,
			handed,
			"users: cannot be bound, only cgroups",
			"several interfaces: a process has one tag for all, so one interface only can be bound",
		)
	}
	return text
}

const weaker = "; weaker than with BPF: root may ask for another class by SO_PRIORITY"

// basis says what a way stands on.
func basis(w bind.Way, t *cgroupfs.Tree) string {
	switch {
	case w.Tagged():
		return by(w, "net_cls at "+t.Where)
	case t.Whole:
		return by(w, "cgroup v2 at "+t.Where)
	}
	return by(w, "cgroup v2 at "+t.Where+", below the root of a cgroup namespace")
}

// by adds to what a way stands on what it works with, where that is not BPF.
func by(w bind.Way, text string) string {
	switch {
	case w == bind.WayClsCgroup:
		text += weaker
	case w == bind.WayNft, w == bind.WayNetClsNft:
		text += ", by nf_tables"
	}
	return text
}

func probeV2(w bind.Way, try func(bind.Way) error) (string, error) {
	t, err := cgroupfs.FindV2()
	if err != nil {
		return "", err
	}
	defer t.Close()
	if w == bind.WayNft {
		err = t.LevelsKnown()
	}
	if err == nil {
		err = try(w)
	}
	return basis(w, t), err
}

func probeNetCls(w bind.Way, try func(bind.Way) error) (string, error) {
	t, err := cgroupfs.FindNetCls()
	if err != nil {
		return "", err
	}
	if t != nil {
		defer t.Close()
		return basis(w, t), try(w)
	}
	b, err := os.ReadFile("/proc/cgroups")
	if err != nil {
		return "", fmt.Errorf("cgroup v1: %w", caps.ErrNotSupported)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 4 && f[0] == "net_cls" && f[3] == "1" {
			return by(w, "net_cls, which will be mounted when it is used"), try(w)
		}
	}
	return "", fmt.Errorf("net_cls (CONFIG_CGROUP_NET_CLASSID): %w", caps.ErrNotSupported)
}
