//go:build ignore

/* SPDX-License-Identifier: MIT */
/*
 * Counts, at a packet socket that sees what leaves an interface, the packets of one
 * run of prove by the class that they have, and keeps none of them; but of each kind it shows
 * what a match may go by.
 */
#include "bpf.h"

#define PACKET_OUTGOING 4
/* as they are in a packet */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define ETH_P_IP 0x0008u
#define ETH_P_IPV6 0xdd86u
#else
#define ETH_P_IP 0x0800u
#define ETH_P_IPV6 0x86ddu
#endif
#define IPV4_UDP 28 /* bytes of both headers; prove sends without options */
#define IPV6_UDP 48

/* What a packet of prove carries. */
struct vif_probe {
	__u64 run;
	__u32 way, zero;
};

struct vif_landed {
	__u32 way, class, proto; /* as in skb->protocol */
};

struct vif_shown {
	__u64 packets;
	/* of the first */
	__u32 mark;
	__u8 macs[12];
	__u8 headers[IPV6_UDP];
};

volatile const __u64 vif_run = 0;

/* All of it is there from the start: more is allocated some time after it is asked for (bpf_mem_alloc, kernel/bpf/memalloc.c, v6.12). */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct vif_landed);
	__type(value, struct vif_shown);
} vif_counts SEC(".maps");

SEC("socket")
int vif_tap(struct __sk_buff *skb)
{
	struct vif_landed at = {};
	struct vif_shown first = {}, *n;
	struct vif_probe p = {};
	__u32 off;

	if (skb->pkt_type != PACKET_OUTGOING)
		return 0;
	if (skb->protocol == ETH_P_IP)
		off = IPV4_UDP;
	else if (skb->protocol == ETH_P_IPV6)
		off = IPV6_UDP;
	else
		return 0;
	if (bpf_skb_load_bytes_relative(skb, off, &p, sizeof(p), BPF_HDR_START_NET) || p.run != vif_run)
		return 0;
	at.way = p.way;
	at.class = skb->priority;
	at.proto = skb->protocol;
	n = bpf_map_lookup_elem(&vif_counts, &at);
	if (!n) {
		first.mark = skb->mark;
		bpf_skb_load_bytes_relative(skb, 0, first.macs, sizeof(first.macs), BPF_HDR_START_MAC);
		if (off == IPV4_UDP)
			bpf_skb_load_bytes_relative(skb, 0, first.headers, IPV4_UDP, BPF_HDR_START_NET);
		else
			bpf_skb_load_bytes_relative(skb, 0, first.headers, IPV6_UDP, BPF_HDR_START_NET);
		bpf_map_update_elem(&vif_counts, &at, &first, BPF_NOEXIST);
		n = bpf_map_lookup_elem(&vif_counts, &at);
	}
	if (n)
		__sync_fetch_and_add(&n->packets, 1);
	return 0;
}

char _license[] SEC("license") = "Dual MIT/GPL";
