//go:build ignore

/* SPDX-License-Identifier: MIT */
/*
 * Stands behind the classifier and vif_note at the egress hook, where a tree has
 * matches: who is bound is told by skb->priority then, and a match gives the packet to a
 * branch below that.
 */
#include "bpf.h"
#include "class.h"
#include "headers.h"
#include "match.h"

SEC("tc")
int vif_match(struct __sk_buff *skb)
{
	__u32 class = skb->priority;

	if (class >> 16 != MAJOR) {
		if (class >> 16 == (MAJOR | STAYS)) /* with a rest that has been bound itself there is nothing below */
			skb->priority = MAJOR << 16 | (class & 0xffff);
		return TC_ACT_UNSPEC;
	}
	skb->priority = MAJOR << 16 | refine(skb, class & 0xffff, 0);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual MIT/GPL";
