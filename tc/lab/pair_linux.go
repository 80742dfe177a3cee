package lab

import (
	"errors"
	"net/netip"
)

// Pair is the smallest network in which something can be shaped: two
// namespaces and a veth pair between them. What is shaped is Dev in Near;
// traffic goes to Far.
type Pair struct {
	Near, Far *NetNS
	Dev       string // name of the interface in Near
	FarDev    string // and in Far

	// Addresses from the ranges set aside for benchmarks (RFC 2544, RFC 5180).
	Near4, Far4 netip.Addr
	Near6, Far6 netip.Addr // the zero Addr on a kernel without IPv6
}

// PairConfig says how the interfaces of a [Pair] are made. The zero value is
// one queue and the kernel's defaults.
type PairConfig struct {
	MTU        int
	TxQueueLen int // packets
	Queues     int // transmit queues of both ends
}

// NewPair makes two namespaces joined by a veth pair that is up, with an IPv4
// and an IPv6 address at each end. The caller closes it.
func NewPair(cfg PairConfig) (*Pair, error) {
	p := &Pair{
		Dev: "eth0", FarDev: "far0",
		Near4: netip.AddrFrom4([4]byte{198, 18, 0, 1}), Far4: netip.AddrFrom4([4]byte{198, 18, 0, 2}),
	}
	err := p.make(cfg)
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *Pair) make(cfg PairConfig) (err error) {
	if p.Near, err = NewNetNS(); err != nil {
		return err
	}
	if p.Far, err = NewNetNS(); err != nil {
		return err
	}
	near := Link{Name: p.Dev, MTU: cfg.MTU, TxQueueLen: cfg.TxQueueLen, Queues: cfg.Queues}
	far := near
	far.Name = p.FarDev
	near.Addrs = []netip.Prefix{netip.PrefixFrom(p.Near4, 24)}
	far.Addrs = []netip.Prefix{netip.PrefixFrom(p.Far4, 24)}
	if ok, err := haveIPv6(); err != nil {
		return err
	} else if ok {
		p.Near6, p.Far6 = netip.MustParseAddr("2001:2::1"), netip.MustParseAddr("2001:2::2")
		near.Addrs = append(near.Addrs, netip.PrefixFrom(p.Near6, 64))
		far.Addrs = append(far.Addrs, netip.PrefixFrom(p.Far6, 64))
	}
	return AddVeth(p.Near, near, p.Far, far)
}

// Close removes the network: the veth at once, so that nothing is sent any
// more, and the namespaces as soon as the last process has left them. Closing
// again is no error.
func (p *Pair) Close() error {
	var errs []error
	if p.Near != nil && p.Near.FD() >= 0 {
		// Without its interface in Near nothing was made yet, or somebody
		// took it away: there is nothing left to remove then.
		if _, _, err := p.Near.index(p.Dev); err == nil {
			errs = append(errs, p.Near.DeleteLink(p.Dev))
		}
		errs = append(errs, p.Near.Close())
	}
	if p.Far != nil {
		errs = append(errs, p.Far.Close())
	}
	return errors.Join(errs...)
}
