// Package survey reads the traffic control of an interface that others have set up: its root
// qdisc with classes, leaf qdiscs and filters, and what stands at ingress, with the tree on
// the IFB that this leads to. What a filter says of packets is told as a [match.Match], as
// far as one says the same. It changes nothing and needs no privileges.
package survey
