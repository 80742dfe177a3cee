// Package latency takes the time that packets wait in the leaves of trees, and what is
// dropped there and why, by programs that the kernel runs where its queues get packets and
// hand them out. Nothing of it is there but while a [Meter] is: it belongs to descriptors,
// and goes with the process whatever ends that.
//
// The programs' source is here; see gen.go. They sit at tracepoints, and take a kernel that
// describes its own types (BTF), Linux 5.10 and later. Parts of packets that a queue divides
// are followed where the kernel lets a program sit at a function of its own (fexit) as well.
package latency
