//go:build linux

package qdisc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Attributes of tbf in linux/pkt_sched.h.
const (
	tbfParms   = 1
	tbfRate64  = 4
	tbfPRate64 = 5
)

// tbfMaxTicks is the longest burst that tbf keeps: 2^32-1 ns (tbf_change,
// net/sched/sch_tbf.c, v6.12).
const tbfMaxTicks = math.MaxUint32 / rtnl.Tick

var tbfLayers = []string{"ethernet", "atm"}

var tbf = discipline{
	Kind: hierarchy.Kind{
		Name: "tbf",
		Help: "one queue with a rate of its own below that of the branch",
		Params: []hierarchy.Param{
			{Name: "rate", Type: hierarchy.Rate, Min: 8, Max: uint64(hierarchy.MaxBandwidth),
				Help: "bandwidth at which packets are sent"},
			{Name: "burst", Type: hierarchy.Bytes, Min: 1, Max: math.MaxUint32,
				Help: "bytes that may be sent at once, at least the MTU"},
			{Name: "limit", Type: hierarchy.Bytes, Min: 1, Max: math.MaxUint32,
				Help: "bytes that may wait"},
			{Name: "latency", Type: hierarchy.Duration, Min: 1, Max: uint64(time.Minute),
				Help: "time that a packet may wait; another way to give limit"},
			{Name: "peakrate", Type: hierarchy.Rate, Min: 8, Max: uint64(hierarchy.MaxBandwidth),
				Help: "bandwidth at which a burst is sent, above rate"},
			{Name: "mtu", Type: hierarchy.Bytes, Min: 1, Max: math.MaxUint32,
				Help: "bytes that may be sent at once at peakrate, at least the MTU"},
			{Name: "mpu", Type: hierarchy.Bytes, Max: math.MaxUint16,
				Help: "bytes that a packet counts as at least"},
			{Name: "overhead", Type: hierarchy.Count, Max: math.MaxInt16,
				Help: "bytes that are added to each packet"},
			{Name: "linklayer", Type: hierarchy.Choice, Max: 1, Choices: tbfLayers,
				Help: "what the line makes of a packet"},
		},
		Verify: func(q hierarchy.Qdisc) error {
			rate, ok := q.Get("rate")
			if !ok {
				return errors.New("tbf needs a rate: write rate = \"10mbit\"")
			}
			_, limit := q.Get("limit")
			_, latency := q.Get("latency")
			peak, hasPeak := q.Get("peakrate")
			_, mtu := q.Get("mtu")
			switch {
			case limit && latency:
				return errors.New("limit and latency say the same thing: give one of them")
			case hasPeak && rtnl.BytesPerSecond(hierarchy.Bandwidth(peak)) <= rtnl.BytesPerSecond(hierarchy.Bandwidth(rate)):
				return fmt.Errorf("peakrate %v is not above rate %v", hierarchy.Bandwidth(peak), hierarchy.Bandwidth(rate))
			case mtu && !hasPeak:
				return errors.New("mtu is the burst of peakrate: give peakrate too")
			}
			if burst, ok := q.Get("burst"); ok {
				if _, err := tbfTicks(hierarchy.Size(burst), hierarchy.Bandwidth(rate)); err != nil {
					return fmt.Errorf("burst %w", err)
				}
			}
			return nil
		},
	},
	module: "sch_tbf",
	settle: func(q hierarchy.Qdisc, s Site) ([]hierarchy.Setting, error) {
		p := settings{q: q}
		rate := hierarchy.Bandwidth(p.get("rate", 0)).Kernel()
		// What a packet of the MTU counts as: one that is larger than a burst is
		// never sent.
		link := hierarchy.LinkLayer{MPU: hierarchy.Size(p.get("mpu", 0)), Overhead: int16(p.get("overhead", 0)), ATM: p.get("linklayer", 0) == 1}
		least := link.Bytes(s.MTU)
		size := func(name string, rate hierarchy.Bandwidth, otherwise hierarchy.Size) (hierarchy.Size, error) {
			most := rtnl.TickBytes(tbfMaxTicks, rate)
			if most < least {
				return 0, fmt.Errorf("%v is too slow: tbf counts to %v then, and a packet counts as up to %v", rate, most, least)
			}
			t, err := tbfTicks(hierarchy.Size(p.get(name, uint64(min(max(otherwise, least), most)))), rate)
			if err != nil {
				return 0, fmt.Errorf("%s %w", name, err)
			}
			b := rtnl.TickBytes(t, rate)
			if b < least {
				return 0, fmt.Errorf("%s %v is below %v, which a packet may count as: it would never be sent", name, b, least)
			}
			return b, nil
		}
		// What is within the burst is not segmented (tbf_enqueue,
		// net/sched/sch_tbf.c, v6.12), so a few of the largest fit.
		burst, err := size("burst", rate, max(Burst(rate, 0), 8*s.MTU, 4*s.Packet))
		if err != nil {
			return nil, err
		}
		limit := p.get("limit", uint64(rtnl.BytesIn(p.get("latency", uint64(queueTime)), rate)+burst))
		p.set("rate", uint64(rate))
		p.set("burst", uint64(burst))
		p.set("limit", min(limit, math.MaxUint32))
		if peak := hierarchy.Bandwidth(p.get("peakrate", 0)); peak != 0 {
			peak = peak.Kernel()
			mtu, err := size("mtu", peak, rtnl.BytesIn(uint64(time.Millisecond), peak))
			if err != nil {
				return nil, err
			}
			p.set("peakrate", uint64(peak))
			p.set("mtu", uint64(mtu))
		}
		for _, name := range []string{"mpu", "overhead", "linklayer"} {
			if v := p.get(name, 0); v != 0 {
				p.set(name, v)
			}
		}
		return p.out, nil
	},
	encode: func(e *rtnl.Encoder, q hierarchy.Qdisc, _ bool) error {
		v, err := values(q, "rate", "burst", "limit")
		if err != nil {
			return err
		}
		rate := hierarchy.Bandwidth(v[0])
		buffer, err := tbfTicks(hierarchy.Size(v[1]), rate)
		if err != nil {
			return fmt.Errorf("burst %w", err)
		}
		mpu, _ := q.Get("mpu")
		overhead, _ := q.Get("overhead")
		layer, _ := q.Get("linklayer")
		link := hierarchy.LinkLayer{MPU: hierarchy.Size(mpu), Overhead: int16(overhead), ATM: layer == 1}
		peak, hasPeak := q.Get("peakrate")
		var mtu uint32
		if hasPeak {
			v, err := value(q, "mtu")
			if err != nil {
				return err
			}
			if mtu, err = tbfTicks(hierarchy.Size(v), hierarchy.Bandwidth(peak)); err != nil {
				return fmt.Errorf("mtu %w", err)
			}
		}
		e.Attr(tbfParms, func() { // struct tc_tbf_qopt
			e.RateSpec(rtnl.RateSpec{Link: link, Rate: rtnl.BytesPerSecond(rate)})
			if hasPeak {
				e.RateSpec(rtnl.RateSpec{Link: link, Rate: rtnl.BytesPerSecond(hierarchy.Bandwidth(peak))})
			} else {
				e.B = append(e.B, make([]byte, rtnl.SizeofRateSpec)...)
			}
			e.Uint32(uint32(v[2]))
			e.Uint32(buffer)
			e.Uint32(mtu)
		})
		if r := rtnl.BytesPerSecond(rate); r > math.MaxUint32 {
			e.Attr64(tbfRate64, r)
		}
		if r := rtnl.BytesPerSecond(hierarchy.Bandwidth(peak)); hasPeak && r > math.MaxUint32 {
			e.Attr64(tbfPRate64, r)
		}
		return nil
	},
	decode: func(opts []byte) ([]hierarchy.Setting, error) {
		var parms []byte
		var rate64, peak64 uint64
		err := rtnl.EachAttr(opts, func(typ uint16, v []byte) (err error) {
			switch typ {
			case tbfParms:
				parms = v
			case tbfRate64:
				rate64, err = rtnl.Uint64(v)
			case tbfPRate64:
				peak64, err = rtnl.Uint64(v)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		if len(parms) < 2*rtnl.SizeofRateSpec+12 {
			return nil, rtnl.ErrMalformed
		}
		u := func(i int) uint32 { return binary.NativeEndian.Uint32(parms[2*rtnl.SizeofRateSpec+4*i:]) }
		spec, peakSpec := rtnl.DecodeRateSpec(parms), rtnl.DecodeRateSpec(parms[rtnl.SizeofRateSpec:])
		rate := max(spec.Rate, rate64)
		peak := max(peakSpec.Rate, peak64)
		if rate > rtnl.MaxRate || peak > rtnl.MaxRate {
			return nil, rtnl.ErrMalformed
		}
		p := settings{}
		p.set("rate", rate*8)
		p.set("burst", uint64(rtnl.TickBytes(u(1), hierarchy.Bandwidth(rate*8))))
		p.set("limit", uint64(u(0)))
		if peak != 0 {
			p.set("peakrate", peak*8)
			p.set("mtu", uint64(rtnl.TickBytes(u(2), hierarchy.Bandwidth(peak*8))))
		}
		if spec.Link.MPU != 0 {
			p.set("mpu", uint64(spec.Link.MPU))
		}
		if spec.Link.Overhead != 0 {
			p.set("overhead", uint64(uint16(spec.Link.Overhead)))
		}
		if spec.Link.ATM {
			p.set("linklayer", 1)
		}
		return p.out, nil
	},
}

// tbfTicks is [rtnl.Ticks] within what tbf keeps.
func tbfTicks(size hierarchy.Size, rate hierarchy.Bandwidth) (uint32, error) {
	t, err := rtnl.Ticks(size, rate)
	if err != nil || t > tbfMaxTicks {
		return 0, fmt.Errorf("%v is more than tbf can count at %v: at most %v", size, rate, rtnl.TickBytes(tbfMaxTicks, rate))
	}
	return t, nil
}
