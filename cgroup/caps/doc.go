// Package caps says why the kernel refuses something: for want of a capability, which
// it names, by a rule that no capability lifts, or because the kernel lacks it.
package caps
