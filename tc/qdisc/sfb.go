//go:build linux

package qdisc

import (
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

const (
	sfbParms  = 1 // attribute of sfb in linux/pkt_sched.h
	sizeofSFB = 36
	// sfbStep is one of the 2^16-1 steps in which sfb counts probabilities.
	sfbStep = hierarchy.Whole / math.MaxUint16
	// sfbTick is a whole number of ticks of the kernel's clock, whatever their
	// length, because sfb shows its times in whole milliseconds.
	sfbTick = uint64(20 * time.Millisecond)
)

var sfb = discipline{
	Kind: hierarchy.Kind{
		Name: "sfb",
		Help: "one queue that learns for groups of flows how much of them to drop, and holds down those that do not yield",
		Params: []hierarchy.Param{
			{Name: "limit", Type: hierarchy.Count, Min: 1, Max: math.MaxUint32,
				Help: "packets that may wait"},
			{Name: "max", Type: hierarchy.Count, Min: 1, Max: math.MaxUint16,
				Help: "packets of one group that may wait"},
			{Name: "target", Type: hierarchy.Count, Min: 1, Max: math.MaxUint16,
				Help: "packets of one group from which on more of it is dropped, at most max"},
			{Name: "increment", Type: hierarchy.Percent, Min: sfbStep, Max: hierarchy.Whole,
				Help: "by which the probability grows with a packet above target"},
			{Name: "decrement", Type: hierarchy.Percent, Min: sfbStep, Max: hierarchy.Whole,
				Help: "by which it shrinks with a packet to an empty group"},
			{Name: "penalty_rate", Type: hierarchy.Count, Max: math.MaxUint32,
				Help: "packets per second of all flows that do not yield"},
			{Name: "penalty_burst", Type: hierarchy.Count, Max: math.MaxUint32,
				Help: "packets of them that are let through at once"},
			{Name: "rehash", Type: hierarchy.Duration, Max: uint64(24 * time.Hour),
				Help: "time after which flows are grouped anew, in steps of 20ms; 0s: never"},
			{Name: "db", Type: hierarchy.Duration, Max: uint64(24 * time.Hour),
				Help: "time before that in which the new groups learn, in steps of 20ms"},
		},
		Verify: func(q hierarchy.Qdisc) error {
			target, hasTarget := q.Get("target")
			most, hasMax := q.Get("max")
			rehash, hasRehash := q.Get("rehash")
			db, hasDB := q.Get("db")
			switch {
			case hasTarget && hasMax && target > most:
				return fmt.Errorf("target %d is above max %d", target, most)
			case hasRehash && hasDB && db > rehash:
				return fmt.Errorf("db %v is longer than rehash %v", time.Duration(db), time.Duration(rehash))
			}
			return nil
		},
	},
	module: "sch_sfb",
	marks:  marksAt(20), // marked of tc_sfb_xstats
	settle: func(q hierarchy.Qdisc, s Site) ([]hierarchy.Setting, error) {
		p := settings{q: q}
		most, target := uint64(25), uint64(0)
		if v, ok := q.Get("target"); ok {
			target, most = v, min((v*5+1)/4, math.MaxUint16)
		}
		most = p.get("max", most)
		if target == 0 {
			target = (most*4 + 3) / 5
		}
		step := func(v uint64) uint64 { return (v + sfbStep/2) / sfbStep * sfbStep }
		whole := func(v uint64) uint64 { return (v + sfbTick - 1) / sfbTick * sfbTick }
		rehash := whole(p.get("rehash", uint64(10*time.Minute)))
		p.set("limit", p.get("limit", 1000))
		p.set("max", most)
		p.set("target", target)
		p.set("increment", step(p.get("increment", 33*sfbStep)))
		p.set("decrement", step(p.get("decrement", 3*sfbStep)))
		p.set("penalty_rate", p.get("penalty_rate", 10))
		p.set("penalty_burst", p.get("penalty_burst", 20))
		p.set("rehash", rehash)
		p.set("db", whole(p.get("db", min(uint64(time.Minute), rehash))))
		return p.out, nil
	},
	encode: func(e *rtnl.Encoder, q hierarchy.Qdisc, _ bool) error {
		v, err := values(q, "rehash", "db", "max", "target", "increment", "decrement", "limit", "penalty_rate", "penalty_burst")
		if err != nil {
			return err
		}
		e.Attr(sfbParms, func() { // struct tc_sfb_qopt
			for i, unit := range []uint64{uint64(time.Millisecond), uint64(time.Millisecond), 1, 1, sfbStep, sfbStep, 1, 1, 1} {
				e.Uint32(uint32(v[i] / unit))
			}
		})
		return nil
	},
	decode: func(opts []byte) ([]hierarchy.Setting, error) {
		var parms []byte
		err := rtnl.EachAttr(opts, func(typ uint16, v []byte) error {
			if typ == sfbParms {
				parms = v
			}
			return nil
		})
		if err == nil && len(parms) < sizeofSFB {
			err = rtnl.ErrMalformed
		}
		if err != nil {
			return nil, err
		}
		u := func(i int) uint64 { return uint64(binary.NativeEndian.Uint32(parms[4*i:])) }
		return []hierarchy.Setting{
			{Name: "limit", Value: u(6)},
			{Name: "max", Value: u(2)},
			{Name: "target", Value: u(3)},
			{Name: "increment", Value: u(4) * sfbStep},
			{Name: "decrement", Value: u(5) * sfbStep},
			{Name: "penalty_rate", Value: u(7)},
			{Name: "penalty_burst", Value: u(8)},
			{Name: "rehash", Value: u(0) * uint64(time.Millisecond)},
			{Name: "db", Value: u(1) * uint64(time.Millisecond)},
		}, nil
	},
	// sfb_change drops what waits.
	inPlace: func(old, want hierarchy.Qdisc) bool { return false },
	words: func(q hierarchy.Qdisc, s hierarchy.Setting) []string {
		switch s.Name {
		case "rehash", "db": // milliseconds to tc, without a unit
			return []string{s.Name, strconv.FormatUint(s.Value/uint64(time.Millisecond), 10)}
		case "increment", "decrement":
			return []string{s.Name, strconv.FormatFloat(float64(s.Value/sfbStep)/math.MaxUint16, 'g', -1, 64)}
		}
		return nil
	},
}
