package lab

import (
	"time"

	"github.com/vifshape/vifshape/hierarchy"
)

// Bytes of header in front of the payload of one packet, as far as a queueing
// discipline charges them: Ethernet 14, IPv4 20 or IPv6 40, and then UDP 8 or
// TCP 20, with 12 more where TCP timestamps are in use.
const (
	headerEthernet   = 14
	headerIPv4       = 20
	headerIPv6       = 40
	headerUDP        = 8
	headerTCP        = 20
	headerTimestamps = 12
)

// Count is what had gone through at one moment. Two of them make a rate.
type Count struct {
	Time    time.Time `json:"time"`
	Payload uint64    `json:"payload"` // bytes of application data
	Wire    uint64    `json:"wire"`    // bytes with Ethernet, IP and TCP or UDP headers
	Packets uint64    `json:"packets"` // datagrams, or TCP segments
	Dropped uint64    `json:"dropped"` // datagrams that arrived and were not counted because a [Sink] was too slow
}

// WireRate is the mean rate on the wire from the earlier count to c, 0 when no
// time lies between them.
func (c Count) WireRate(earlier Count) hierarchy.Bandwidth {
	t := c.Time.Sub(earlier.Time)
	if t <= 0 || c.Wire < earlier.Wire {
		return 0
	}
	return hierarchy.Bandwidth(float64(c.Wire-earlier.Wire) * 8 / t.Seconds())
}

func (c *Count) add(o Count) {
	c.Payload += o.Payload
	c.Wire += o.Wire
	c.Packets += o.Packets
	c.Dropped += o.Dropped
}
