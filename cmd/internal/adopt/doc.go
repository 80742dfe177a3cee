// Package adopt makes a policy of the traffic control that others have set up on an
// interface: branches of its classes, matches of its filters, qdiscs of its queues. What a
// policy cannot say, or says differently, stands beside it as a comment, with the reason.
//
// The policy is always right: where our rules are stricter than the kernel's, values are
// lowered until they hold. [hierarchy.Resolve] decides.
package adopt
