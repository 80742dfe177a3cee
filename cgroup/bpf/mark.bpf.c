//go:build ignore

/* SPDX-License-Identifier: MIT */
/*
 * At the ingress of a bound interface that is a port of a bridge: what the bridge
 * hands up to be routed looks as if the bridge had brought it in
 * (br_pass_frame_up, net/bridge/br_input.c, v6.12), and only the mark still tells.
 *
 * The kernel clears the mark of what comes from another network namespace
 * (skb_scrub_packet, net/core/skbuff.c, v6.12), so that one of ours is from here.
 */
#include "bpf.h"
#include "mark.h"

SEC("tc")
int vif_mark(struct __sk_buff *skb)
{
	__u32 index = skb->ifindex;

	if (index >> 16 > VIF_MARK_INDEX)
		return TC_ACT_UNSPEC;
	skb->mark = VIF_MARK | index >> 16;
	skb->tc_index = index & 0xffff;
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "MIT";
