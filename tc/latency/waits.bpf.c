//go:build ignore

/* SPDX-License-Identifier: MIT */
/*
 * Takes the time that packets wait in the leaves of trees, and notes which of them are
 * dropped, and why.
 *
 * A packet is noted by its address, from where it is given to the root of a tree to where
 * the root hands it on, or to where it is freed. Which leaf gets it HTB keeps to itself, but
 * goes by what the packet shows: its priority where that is the class of a leaf, as
 * classifiers write it there; else it is the rest's (htb_classify, net/sched/sch_htb.c,
 * v5.10 to v6.18; our roots have no filters but that of cls_cgroup).
 */
#include "../../cgroup/bpf/bpf.h"
#include "kernel.h"

#define BUCKETS 432
#define BULK 128  /* packets that are handed to a device at once, at most */
#define PARTS 128 /* of a packet that a queue divides: 64 KiB in segments of 536 bytes */

/* A leaf; of class 0: the rest. */
struct vif_place {
	__u32 ifindex, class;
};

/* A packet that waits. */
struct vif_packet {
	__u64 since;
	__u64 device; /* address */
	__u64 leaf;   /* number in vif_leaves */
};

/* What waited in a leaf, in nanoseconds. Whoever hands a packet on holds the lock of the root. */
struct vif_leaf {
	__u64 packets, total, longest;
	__u64 untimed; /* packets of which it cannot be told how long they waited */
	__u64 waits[BUCKETS];
};

struct vif_reason {
	__u32 leaf, reason;
};

volatile const __u32 vif_netns = 0;  /* inode number of the network namespace */
volatile const __u32 vif_root = 0;   /* handle of our roots */
volatile const __u8 vif_reasons = 0; /* whether the kernel says why it drops a packet */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct vif_place);
	__type(value, __u32);
} vif_places SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct vif_leaf);
} vif_leaves SEC(".maps");

/* All of it is there from the start: nothing is allocated while packets wait for it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct vif_packet);
} vif_packets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct vif_reason);
	__type(value, __u64);
} vif_drops SEC(".maps");

/*
 * The verifier looks at a function that is not static once, and not in each round of each
 * loop that calls it.
 */
#define __once __attribute__((noinline))

/* As bucketOf in Go: sixteen to each doubling, from 64 ns on. */
static __always_inline __u32 bucket(__u64 wait)
{
	__u32 units = wait >> 6, rest = units, log = 0;

	if (wait >> 36)
		return BUCKETS - 1;
	if (units < 16)
		return units;
	for (int bits = 16; bits; bits /= 2) {
		if (rest >> bits) {
			log += bits;
			rest >>= bits;
		}
	}
	return (log - 3) * 16 + ((units >> (log - 4)) & 15);
}

/* Counts a packet that has left a leaf. */
__once int vif_count(__u32 number, __u64 wait)
{
	struct vif_leaf *leaf = bpf_map_lookup_elem(&vif_leaves, &number);
	__u32 i = bucket(wait);

	if (!leaf)
		return 0;
	leaf->packets++;
	leaf->total += wait;
	if (wait > leaf->longest)
		leaf->longest = wait;
	if (i < BUCKETS)
		leaf->waits[i]++;
	return 0;
}

/* Counts one of which it cannot be told how long it waited. */
__once int vif_miss(__u32 number)
{
	struct vif_leaf *leaf = bpf_map_lookup_elem(&vif_leaves, &number);

	if (leaf)
		__sync_fetch_and_add(&leaf->untimed, 1);
	return 0;
}

/* Forgets a packet of which it cannot be told how long it waits. */
static __always_inline void forget(__u64 at, struct vif_packet *p)
{
	vif_miss(p->leaf);
	bpf_map_delete_elem(&vif_packets, &at);
}

static __always_inline void note(__u64 at, struct vif_packet *p)
{
	struct vif_packet *old;

	if (!bpf_map_update_elem(&vif_packets, &at, p, BPF_NOEXIST))
		return;
	old = bpf_map_lookup_elem(&vif_packets, &at);
	if (old) /* that was at the same address: it was not seen to go */
		forget(at, old);
	if (bpf_map_update_elem(&vif_packets, &at, p, BPF_ANY))
		vif_miss(p->leaf); /* more wait than there is room for */
}

/* Comes after all that classifies (__dev_queue_xmit, net/core/dev.c, v5.10 to v6.18). */
SEC("tp_btf/net_dev_queue")
int vif_arrive(__u64 *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)ctx[0];
	struct net_device *dev = skb->dev;
	struct vif_place place = {};
	struct vif_packet p = {};
	__u32 *leaf;

	if (dev->nd_net.net->ns.inum != vif_netns)
		return 0;
	place.ifindex = dev->ifindex;
	place.class = skb->priority;
	if (place.class == vif_root) /* past all classes */
		return 0;
	leaf = bpf_map_lookup_elem(&vif_places, &place);
	if (!leaf) {
		place.class = 0;
		leaf = bpf_map_lookup_elem(&vif_places, &place);
	}
	if (!leaf)
		return 0;
	p.leaf = *leaf;
	p.device = (__u64)dev;
	p.since = bpf_ktime_get_ns();
	note((__u64)skb, &p);
	return 0;
}

/* Follows the parts of packets that a queue divides: it does so when it gets them. */
SEC("fexit/__skb_gso_segment")
int vif_divide(__u64 *ctx)
{
	struct sk_buff *part = (struct sk_buff *)ctx[3];
	__u64 at = ctx[0];
	struct vif_packet p, *whole;

	if (!part || (__u64)part >= -4095ull) /* an error: the whole is dropped */
		return 0;
	whole = bpf_map_lookup_elem(&vif_packets, &at);
	if (!whole)
		return 0;
	p = *whole;
	bpf_map_delete_elem(&vif_packets, &at);
	for (int i = 0; i < PARTS && part; i++) {
		note((__u64)part, &p);
		part = part->next;
	}
	if (part)
		vif_miss(p.leaf);
	return 0;
}

/* What a queue consumes goes on as parts, or as a copy, that nobody could follow. */
SEC("tp_btf/consume_skb")
int vif_consume(__u64 *ctx)
{
	__u64 at = ctx[0];
	struct vif_packet *p = bpf_map_lookup_elem(&vif_packets, &at);

	if (p)
		forget(at, p);
	return 0;
}

SEC("tp_btf/qdisc_dequeue")
int vif_dequeue(__u64 *ctx)
{
	struct Qdisc *root = (struct Qdisc *)ctx[0];
	int packets = ctx[2];
	struct sk_buff *skb = (struct sk_buff *)ctx[3];
	struct vif_packet *p;
	__u64 now, wait, device, at;
	__u32 leaf;
	int ours;

	if (!skb || root->handle != vif_root)
		return 0;
	device = (__u64)root->dev_queue->dev;
	now = bpf_ktime_get_ns();
	for (int n = 0; n < BULK && n < packets && skb; n++) {
		at = (__u64)skb;
		skb = skb->next;
		p = bpf_map_lookup_elem(&vif_packets, &at);
		if (!p) /* it came before the measurement, or comes back from a device that was busy */
			continue;
		leaf = p->leaf;
		wait = now - p->since;
		ours = p->device == device; /* else it was another at the same address, which nobody saw go */
		bpf_map_delete_elem(&vif_packets, &at);
		if (ours)
			vif_count(leaf, wait);
		else
			vif_miss(leaf);
	}
	return 0;
}

SEC("tp_btf/kfree_skb")
int vif_drop(__u64 *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)ctx[0];
	__u64 at = (__u64)skb, first = 1, *n;
	struct vif_packet *p = bpf_map_lookup_elem(&vif_packets, &at);
	struct vif_reason why = {};

	if (!p)
		return 0;
	if (p->device != (__u64)skb->dev) { /* another at the same address */
		forget(at, p);
		return 0;
	}
	why.leaf = p->leaf;
	if (vif_reasons)
		why.reason = ctx[2];
	bpf_map_delete_elem(&vif_packets, &at);
	n = bpf_map_lookup_elem(&vif_drops, &why);
	if (!n) {
		if (!bpf_map_update_elem(&vif_drops, &why, &first, BPF_NOEXIST))
			return 0;
		n = bpf_map_lookup_elem(&vif_drops, &why); /* another processor was first */
	}
	if (n)
		__sync_fetch_and_add(n, 1);
	return 0;
}

char _license[] SEC("license") = "Dual MIT/GPL";
