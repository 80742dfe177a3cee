// Package link tells of network interfaces: what each really is and lies on, how fast its
// line is and how large the packets are that it is given, and when one comes, changes or
// goes. It makes none but IFBs, by which what an interface receives gets a queue. It knows
// no traffic control.
package link
