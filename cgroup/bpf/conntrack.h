/* SPDX-License-Identifier: MIT */
/*
 * The kernel's connection tracking, as far as programs ask it (net/netfilter/nf_conntrack_bpf.c,
 * v5.18). It is asked for TCP and UDP alone, and in the default zone.
 */
struct bpf_ct_opts {
	int netns_id, error;
	__u8 l4proto, dir, reserved[2];
};
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
union nf_inet_addr {
	__u32 all[4];
};
struct nf_conntrack_man {
	union nf_inet_addr u3;
};
struct nf_conntrack_tuple {
	struct nf_conntrack_man src;
};
struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
};
struct nf_conn {
	struct nf_conntrack_tuple_hash tuplehash[2]; /* by direction: of who began, and of the answers */
};
#pragma clang attribute pop

extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb, struct bpf_sock_tuple *tuple, __u32 tuple__sz, struct bpf_ct_opts *opts, __u32 opts__sz) __attribute__((section(".ksyms")));
extern void bpf_ct_release(struct nf_conn *ct) __attribute__((section(".ksyms")));
