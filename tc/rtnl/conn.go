//go:build linux

package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"

	gotc "github.com/florianl/go-tc"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Config says where to open a connection. The zero value is the caller's network
// namespace.
type Config struct {
	// NetNS is the descriptor of a network namespace. 0: the caller's. It may be
	// closed once Open has returned.
	NetNS int
	// Warn is given each remark that comes with something that worked: the
	// kernel's, and that packets were lost. It may be nil.
	Warn func(string)
}

// Conn is a connection to one network namespace. It is not for use by several
// goroutines at once.
type Conn struct {
	at   *socket
	nl   *netlink.Conn
	tc   *gotc.Tc
	warn func(string)
}

const (
	// messageBuffer is above the 32 KiB that the kernel fills at most per reply
	// of a dump (netlink_dump, net/netlink/af_netlink.c, v6.12). Without a
	// buffer of this size it makes small replies, and each one walks the class
	// list from its start.
	messageBuffer = 64 << 10
	// socketBuffer holds the replies if every message of a batch fails.
	socketBuffer = 4 << 20
)

// Open opens a connection. It needs no privileges, except CAP_SYS_ADMIN for the
// namespace of another.
func Open(cfg Config) (*Conn, error) {
	at, err := dial(cfg.NetNS)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	c := &Conn{at: at, nl: netlink.NewConn(at, at.pid), warn: cfg.Warn}
	c.tc, err = gotc.Open(&gotc.Config{NetNS: cfg.NetNS})
	if err == nil {
		err = c.tc.SetOption(netlink.ExtendedAcknowledge, true)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink socket: %w", err), c.Close())
	}
	return c, nil
}

// Close closes the connection. What was made with it stays.
func (c *Conn) Close() error {
	err := c.nl.Close()
	if c.tc != nil {
		err = errors.Join(err, c.tc.Close())
	}
	return err
}

// Port is the address of the connection, which notices bear of what it has asked for.
func (c *Conn) Port() uint32 { return c.at.pid }

// Warnf passes a remark on.
func (c *Conn) Warnf(format string, args ...any) {
	if c.warn != nil {
		c.warn(fmt.Sprintf(format, args...))
	}
}

// TC is go-tc's connection to the same namespace, for hooks and filters. It has a
// socket of its own: go-tc takes no other's.
func (c *Conn) TC() *gotc.Tc { return c.tc }

// Execute sends a request and returns the answers to it.
func (c *Conn) Execute(m netlink.Message) ([]netlink.Message, error) { return c.nl.Execute(m) }

// Control lends the socket's descriptor to f: an ioctl over a socket that was opened
// elsewhere may be in another namespace.
func (c *Conn) Control(f func(fd uintptr)) { f(uintptr(c.at.fd)) }

// Dump asks for all objects of a type and calls f with the body of each. f must
// not keep it. An error of f ends the dump.
func (c *Conn) Dump(typ netlink.HeaderType, body []byte, f func(body []byte) error) error {
	req, err := c.nl.Send(netlink.Message{
		Header: netlink.Header{Type: typ, Flags: netlink.Request | netlink.Dump},
		Data:   body,
	})
	if err != nil {
		return err
	}
	for m, err := range c.nl.ReceiveIter() {
		if err != nil {
			return err
		}
		// Left over from a request whose replies were not all read.
		if m.Header.Sequence != req.Header.Sequence {
			continue
		}
		if err := f(m.Data); err != nil {
			return err
		}
	}
	return nil
}

// Send sends messages in one go. The kernel works through all of them within
// the call and does not stop at one that fails; it answers the last one and
// each that fails. Send returns the place of the first that failed and why, or
// the number of messages.
//
// An error that is not an answer of the kernel to a message leaves open how far
// it came; the place is then 0.
func (c *Conn) Send(msgs []netlink.Message) (int, error) {
	if len(msgs) == 0 {
		return 0, nil
	}
	msgs[len(msgs)-1].Header.Flags |= netlink.Acknowledge
	msgs, err := c.nl.SendMessages(msgs)
	if err != nil {
		return 0, err
	}
	first, last := msgs[0].Header.Sequence, msgs[len(msgs)-1].Header.Sequence
	failed, cause := len(msgs), error(nil)
	for {
		seq := uint32(0)
		replies, err := c.nl.Receive()
		if err != nil {
			var op *netlink.OpError
			if !errors.As(err, &op) || op.Sequence == 0 {
				return 0, err
			}
			seq = op.Sequence
			if i := int(seq - first); i < failed {
				failed, cause = i, err
			}
		}
		for _, m := range replies {
			seq = m.Header.Sequence
			if w := warning(m); w != "" {
				c.Warnf("%s", w)
			}
		}
		if seq == last {
			return failed, cause
		}
	}
}

// warning is the kernel's remark in an acknowledgement, empty when it has none.
func warning(m netlink.Message) (text string) {
	if m.Header.Type != netlink.Error || m.Header.Flags&netlink.AcknowledgeTLVs == 0 || len(m.Data) < 20 {
		return ""
	}
	// The error number, then the header of the request, then the request
	// itself unless it is left out (netlink_ack, net/netlink/af_netlink.c,
	// v6.12), then attributes.
	at := 20
	if m.Header.Flags&netlink.Capped == 0 {
		at = 4 + int(binary.NativeEndian.Uint32(m.Data[4:]))
	}
	if at < 20 || at > len(m.Data) {
		return ""
	}
	// A remark that cannot be read is no reason to fail what worked.
	_ = EachAttr(m.Data[at:], func(typ uint16, v []byte) error {
		if typ == unix.NLMSGERR_ATTR_MSG {
			text = String(v)
		}
		return nil
	})
	return text
}
