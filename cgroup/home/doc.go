// Package home has the cgroups of branches: where each lies, who is in it, and how
// processes get there, with what they have open. To bind them is not its business; what
// brings open sockets along is the caller's [Carrier].
//
// Changes need root or CAP_DAC_OVERRIDE. Linux only; functions are safe for concurrent use.
package home
