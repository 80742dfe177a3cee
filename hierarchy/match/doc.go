// Package match has the words for packets: a [Match] as a policy writes it, which says by
// addresses, ports, marks and the like which packets a branch carries, and a [Packet] as
// somebody describes one.
//
// Of several matches that fit a packet the most specific wins: that whose prefixes fix
// more bits of its two addresses, taken together; of equal ones that with more keys. The
// keys port and mac fit on either side of a packet. Of matches that are equal otherwise
// one that fits on the far side wins over one that only fits on ours; ports say so before
// MAC addresses do; and one with host, which knows the address of our side before its
// translation, over one without. That is the order of [Rank], and [Clashes] finds the matches that it
// does not tell apart.
//
// Like all of the model it does no input or output, needs only the standard library,
// and its values may be read by several goroutines at once. No name is looked up: the same
// text means the same packets on every machine.
package match
