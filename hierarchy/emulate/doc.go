// Package emulate makes leaf qdiscs that behave like a kind of line: 3G, DSL, a
// satellite. It has the figures of well-known lines with where they come from, and
// makes of such figures, or of those that somebody gives by hand, what a branch needs.
//
// Like all of the model it does no input or output and needs only the standard
// library.
package emulate
