//go:build linux

package rtnl

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	"golang.org/x/sys/unix"
)

// answers is a connection that gives one prepared answer after another to a
// request. An answer is made of the request's messages.
func answers(t *testing.T, next ...func(reqs []netlink.Message) netlink.Message) *netlink.Conn {
	t.Helper()
	var reqs []netlink.Message
	nl := nltest.Dial(func(got []netlink.Message) ([]netlink.Message, error) {
		if len(got) > 0 {
			reqs = got
			return nil, nil
		}
		if len(next) == 0 {
			t.Error("more answers are waited for than there are")
			return nil, unix.EIO
		}
		m := next[0](reqs)
		next = next[1:]
		return []netlink.Message{m}, nil
	})
	t.Cleanup(func() {
		if len(next) > 0 {
			t.Errorf("%d answers were not read", len(next))
		}
	})
	return nl
}

// ack answers message i with an error number, 0 for success, and a remark.
func ack(i int, no unix.Errno, text string) func([]netlink.Message) netlink.Message {
	return func(reqs []netlink.Message) netlink.Message {
		r := reqs[i]
		e := Encoder{}
		e.Uint32(uint32(-int32(no)))
		e.Uint32(r.Header.Length)
		e.Uint16(uint16(r.Header.Type))
		e.Uint16(uint16(r.Header.Flags))
		e.Uint32(r.Header.Sequence)
		e.Uint32(r.Header.PID)
		h := netlink.Header{Type: netlink.Error, Sequence: r.Header.Sequence, PID: r.Header.PID}
		if no == 0 {
			h.Flags |= netlink.Capped
		} else {
			e.B = append(e.B, r.Data...)
		}
		if text != "" {
			h.Flags |= netlink.AcknowledgeTLVs
			e.AttrString(unix.NLMSGERR_ATTR_MSG, text)
		}
		h.Length = uint32(16 + len(e.B))
		return netlink.Message{Header: h, Data: e.B}
	}
}

func TestSend(t *testing.T) {
	for _, tt := range []struct {
		name     string
		answers  []func([]netlink.Message) netlink.Message
		failed   int
		err      error
		warnings []string
	}{
		{"all went well", []func([]netlink.Message) netlink.Message{ack(3, 0, "")}, 4, nil, nil},
		{"with a remark", []func([]netlink.Message) netlink.Message{ack(3, 0, "quantum of class 10001 is big.")}, 4, nil, []string{"quantum of class 10001 is big."}},
		{"two failed", []func([]netlink.Message) netlink.Message{ack(1, unix.EEXIST, ""), ack(2, unix.EINVAL, "no"), ack(3, 0, "")}, 1, unix.EEXIST, nil},
		{"the last failed", []func([]netlink.Message) netlink.Message{ack(3, unix.EBUSY, "HTB class in use")}, 3, unix.EBUSY, nil},
		{"the last failed too", []func([]netlink.Message) netlink.Message{ack(0, unix.EINVAL, ""), ack(3, unix.EBUSY, "")}, 0, unix.EINVAL, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var warnings []string
			c := &Conn{nl: answers(t, tt.answers...), warn: func(s string) { warnings = append(warnings, s) }}
			msgs := make([]netlink.Message, 4)
			for i := range msgs {
				msgs[i] = Message(unix.RTM_NEWTCLASS, 0, make([]byte, SizeofTcMsg))
			}
			failed, err := c.Send(msgs)
			if failed != tt.failed || !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
				t.Errorf("%d, %v, want %d, %v", failed, err, tt.failed, tt.err)
			}
			if d := cmp.Diff(tt.warnings, warnings); d != "" {
				t.Errorf("remarks (-want +got)\n%s", d)
			}
			for i, m := range msgs {
				if (m.Header.Flags&netlink.Acknowledge != 0) != (i == len(msgs)-1) {
					t.Errorf("message %d has flags %v", i, m.Header.Flags)
				}
			}
		})
	}
}

// A remark that is cut short or lies about its length is no remark.
func TestWarningMalformed(t *testing.T) {
	full := ack(0, 0, "text")([]netlink.Message{{Header: netlink.Header{Length: 36}}})
	if got := warning(full); got != "text" {
		t.Fatalf("remark %q", got)
	}
	for n := range 20 + 4 + len("text") {
		m := full
		m.Data = full.Data[:n]
		if got := warning(m); got != "" {
			t.Errorf("%d bytes: %q", n, got)
		}
		m.Header.Flags &^= netlink.Capped
		if got := warning(m); got != "" {
			t.Errorf("%d bytes with a request: %q", n, got)
		}
	}
}
