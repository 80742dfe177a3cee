package hierarchy

import (
	"fmt"
	"slices"
	"strings"
)

// Line is what a policy says of the line that carries an interface's packets: how
// many bytes it sends for each, so that rates are those of the line. The zero
// value counts packets as the kernel does: without anything that is added further
// down.
type Line struct {
	Layer    string // one of [Layers]; empty: none
	Overhead int16  // bytes sent besides each IP packet, up to [MaxOverhead]; zero: the layer's
	MPU      Size   // least bytes that a packet takes, overhead included; zero: the layer's
}

// MaxOverhead is how many bytes a line may send besides each IP packet at most:
// more than any does.
const MaxOverhead = 256

const maxMPU = 256 * Byte // more than any line pads to

// layer is a kind of line. The names and numbers are those of tc-cake(8), where it
// has them.
type layer struct {
	name     string
	overhead int16
	mpu      Size
	atm      bool // cells
	ptm      bool // 65 bytes for 64
}

// An Ethernet cable sends preamble and start (8), header (14), checksum (4) and a
// gap (12), and 84 bytes for the shortest frame; a VLAN tag takes 4 and PPPoE 8
// more. Cable modems are metered by their frames with checksum. PPPoE over VDSL2 is
// 8, a frame of 18 and 4 of PTM.
var layers = [...]layer{
	{name: "ethernet", overhead: 38, mpu: 84},
	{name: "ether-vlan", overhead: 42, mpu: 84},
	{name: "pppoe-vlan", overhead: 50, mpu: 84},
	{name: "docsis", overhead: 18, mpu: 64},
	{name: "bridged-ptm", overhead: 22, ptm: true},
	{name: "pppoe-ptm", overhead: 30, ptm: true},
	{name: "atm", atm: true},
	{name: "ipoa-vcmux", overhead: 8, atm: true},
	{name: "ipoa-llcsnap", overhead: 16, atm: true},
	{name: "pppoa-vcmux", overhead: 10, atm: true},
	{name: "pppoa-llc", overhead: 14, atm: true},
	{name: "pppoe-vcmux", overhead: 32, atm: true},
	{name: "pppoe-llcsnap", overhead: 40, atm: true},
	{name: "bridged-vcmux", overhead: 24, atm: true},
	{name: "bridged-llcsnap", overhead: 32, atm: true},
	{name: "conservative", overhead: 48, atm: true},
}

// Layers are the names of the lines that are known: "ethernet", "docsis",
// "pppoe-vlan" and so on.
func Layers() []string {
	names := make([]string, len(layers))
	for i, l := range layers {
		names[i] = l.name
	}
	return names
}

// suggestLayer names the nearest of [Layers], and all.
func suggestLayer(name string) string {
	hint := "known are " + strings.Join(Layers(), ", ")
	if n := Nearest(name, Layers()); n != "" {
		hint = fmt.Sprintf("did you mean %q? %s", n, hint)
	}
	return hint
}

// layer is the line's layer with what the policy says otherwise; ok is false when
// there is none of that name.
func (l Line) layer() (x layer, ok bool) {
	i := slices.IndexFunc(layers[:], func(x layer) bool { return x.name == l.Layer })
	if i >= 0 {
		x = layers[i]
	}
	if l.Overhead != 0 {
		x.overhead = l.Overhead
	}
	if l.MPU != 0 {
		x.mpu = l.MPU
	}
	return x, i >= 0 || l.Layer == ""
}

// On is what the kernel has to add to the packets of an interface with which it
// counts a link-layer header of the given length, 14 bytes on Ethernet and none on
// PPP. It is an error when it counts more than the line sends: HTB cannot subtract.
func (l Line) On(header Size) (LinkLayer, error) {
	x, _ := l.layer()
	add := LinkLayer{MPU: x.mpu, ATM: x.atm}
	if x.overhead == 0 {
		return add, nil
	}
	if Size(x.overhead) < header {
		of := ""
		if l.Overhead == 0 {
			of = fmt.Sprintf(" of linklayer %q", l.Layer)
		}
		return LinkLayer{}, fmt.Errorf("overhead %d%s is less than the %d bytes of header that the kernel counts with each packet of this interface, and HTB cannot subtract: write overhead = %d, which is on the safe side, or shape an interface without that header, such as ppp0", x.overhead, of, header, header)
	}
	add.Overhead = x.overhead - int16(header)
	return add, nil
}

// share is what a rate of the line leaves for what HTB can count. PTM sends a byte
// of its own with every 64 (IEEE 802.3, 61.3.3): as good as a lower rate.
func (l Line) share(b Bandwidth) Bandwidth {
	if x, _ := l.layer(); x.ptm {
		return max(b-b/65-min(b%65, 1), minRate) // b*64/65, rounded down
	}
	return b
}

// String says how packets are counted: "docsis: IP packet + 18 bytes, at least 64
// bytes". It is empty for the zero value.
func (l Line) String() string {
	x, _ := l.layer()
	var s []string
	if x.overhead != 0 {
		s = append(s, fmt.Sprintf("IP packet + %d bytes", x.overhead))
	}
	if x.mpu != 0 {
		s = append(s, fmt.Sprintf("at least %d bytes", x.mpu))
	}
	switch {
	case x.atm:
		s = append(s, "in cells of 53 bytes that carry 48")
	case x.ptm:
		s = append(s, "at 64/65 of the rates written, because one byte in 65 is PTM's own")
	}
	text := strings.Join(s, ", ")
	if l.Layer != "" {
		text = l.Layer + ": " + text
	}
	return text
}

// LinkLayer is what the kernel adds to the length of each packet that it counts
// (psched_l2t_ns, include/net/sch_generic.h, v6.12). The zero value adds nothing.
// Kernels before 5.10.93, 5.15.16 and 5.16.2 ignore MPU.
type LinkLayer struct {
	Overhead int16 `json:"overhead,omitempty"` // bytes added to each packet
	MPU      Size  `json:"mpu,omitempty"`      // least bytes a packet counts as
	ATM      bool  `json:"atm,omitempty"`      // cells of 53 bytes carrying 48
}

// Bytes is what a packet of n bytes counts as.
func (l LinkLayer) Bytes(n Size) Size {
	n = max(n+Size(l.Overhead), l.MPU)
	if l.ATM {
		n = (n + 47) / 48 * 53
	}
	return n
}

// String prints what is added as tc has it: "overhead 44 mpu 64 linklayer atm",
// and nothing for the zero value.
func (l LinkLayer) String() string {
	var words []string
	if l.Overhead != 0 {
		words = append(words, fmt.Sprintf("overhead %d", l.Overhead))
	}
	if l.MPU != 0 {
		words = append(words, fmt.Sprintf("mpu %d", l.MPU))
	}
	if l.ATM {
		words = append(words, "linklayer atm")
	}
	return strings.Join(words, " ")
}
