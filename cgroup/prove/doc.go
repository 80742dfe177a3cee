// Package prove sends packets through each way into a branch and says in which class
// they left the interface: what is bound is what is held. It knows no classifier, and
// changes nothing but for cgroups that are there while it sends.
//
// Needs CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW, and CAP_SETUID for users. Linux only.
package prove
