// Package rtnl is the connection to the kernel's rtnetlink and what lies in its
// messages: attributes, the objects of traffic control, rates and bursts in the kernel's
// units, and its refusals as errors. It knows no kind of qdisc and no tree.
package rtnl
