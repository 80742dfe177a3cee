/* SPDX-License-Identifier: MIT */
/*
 * The kernel's own types, as far as the programs read them. The loader looks up
 * where each field is in the running kernel, by the description that it has of
 * them (BTF).
 */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct ns_common {
	unsigned int inum;
};
struct net {
	struct ns_common ns;
};
typedef struct {
	struct net *net;
} possible_net_t;
struct net_device {
	int ifindex;
	possible_net_t nd_net;
};
struct netdev_queue {
	struct net_device *dev;
};
struct Qdisc {
	__u32 handle;
	struct netdev_queue *dev_queue;
};
struct sk_buff {
	struct sk_buff *next;
	struct net_device *dev;
	__u32 priority;
};
#pragma clang attribute pop
