//go:build ignore

/* SPDX-License-Identifier: MIT */
/*
 * The class of a packet that leaves an interface, written to skb->priority,
 * where HTB looks before any filter (htb_classify, net/sched/sch_htb.c, v6.12).
 * It is written for every packet: whatever the socket asked for by SO_PRIORITY,
 * control message, TOS or firewall mark is overwritten.
 *
 * The programs return TC_ACT_UNSPEC, so that others on the hook still run. There
 * is one set of maps for each interface.
 */
#include "bpf.h"
#include "kernel.h"
#include "mark.h"
#include "socket.h"
#include "bound.h"
#include "config.h"

#define IPPROTO_TCP 6
#define TCP_FIN 1
#define PF_KTHREAD 0x00200000

/* struct vif_config is in config.h. */
volatile struct vif_config vif_config SEC(".data.vif") = {};

/* Bound interfaces, by index, for what they bring in and this one sends on. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u32);
} vif_links SEC(".maps");

static __always_inline __u32 brought(__u32 index)
{
	__u32 *class = bpf_map_lookup_elem(&vif_links, &index);

	return class ? *class : 0;
}

/*
 * The class of what another interface brought in, 0 for none. The mark says that
 * there is a port behind the bridge that ingress_ifindex names. It is believed of forwarded packets
 * without a socket only: a socket's mark is what its owner likes.
 */
static __always_inline __u32 link(struct __sk_buff *skb, struct bpf_sock *any)
{
	__u32 index = skb->ingress_ifindex, mark = skb->mark, class = 0;

	if (!index)
		return 0;
	if (!any && (mark & VIF_MARK_MASK) == VIF_MARK)
		class = brought((mark & VIF_MARK_INDEX) << 16 | (skb->tc_index & 0xffff));
	return class ? class : brought(index);
}

static __always_inline __u32 big(const __u8 *b, int n)
{
	__u32 v = 0;

	for (int i = 0; i < n; i++)
		v = v << 8 | b[i];
	return v;
}

/*
 * Whether a packet is one that TCP is just about to send for the first time: what
 * is next to be sent is what it holds, for that goes on when it is handed over
 * (tcp_event_new_data_sent, net/ipv4/tcp_output.c, v6.12). One that waited on the
 * way here, in the queue of an interface above for example, is not.
 */
static __always_inline int sending(struct __sk_buff *skb, struct tcp_sock *tcp)
{
	__u8 ip[20], th[14];
	__u32 at = 40, len;

	if (bpf_skb_load_bytes_relative(skb, 0, ip, sizeof(ip), BPF_HDR_START_NET))
		return 0;
	if (ip[0] >> 4 == 4 && ip[9] == IPPROTO_TCP) {
		at = (ip[0] & 15) * 4;
		len = big(ip + 2, 2) - at;
	} else if (ip[0] >> 4 == 6 && ip[6] == IPPROTO_TCP) {
		len = big(ip + 4, 2);
	} else {
		return 0;
	}
	if (bpf_skb_load_bytes_relative(skb, at, th, sizeof(th), BPF_HDR_START_NET))
		return 0;
	/* no length: it does not fit into its field */
	return big(th + 4, 4) == tcp->snd_nxt && (th[13] & TCP_FIN || !len || len > (th[12] >> 4) * 4u);
}

/*
 * An accepted connection goes by the process that serves it, whoever opened the
 * listener or accepted it: systemd, inetd, a parent that forked, sshd before it
 * became the user. TCP sends with the socket locked: either by a process, which is
 * then the one that runs here, or by an interrupt, which leaves alone what a process
 * has locked (tcp_v4_rcv and tcp_tsq_handler, net/ipv4, v6.12). A process that is
 * bound by nothing changes nothing, so that a connection that is passed on does not
 * get out of its branch; nor does the kernel, whose threads are root's.
 */
static __always_inline void served(struct __sk_buff *skb, struct bpf_sock *sk, struct vif_socket *s, __u32 generation)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct task_struct *task;
	struct cgroup *at;
	__u64 id, next;
	__u32 user;

	if (!tcp || !tcp->inet_conn.icsk_inet.sk.sk_lock.owned)
		return;
	task = bpf_get_current_task_btf();
	at = task->cgroups->dfl_cgrp;
	id = at->kn->id;
	user = task->cred->fsuid.val;
	if ((s->cgroup == id && s->user == user && s->generation == generation) ||
	    task->flags & PF_KTHREAD || !sending(skb, tcp))
		return;
	next = bound(at, user);
	if (next && next != s->override) {
		s->override = next;
		s->cached = 0;
	}
	s->cgroup = id;
	s->user = user;
	s->generation = generation;
}

/* The class of the deepest bound cgroup above the socket, 0 for none. */
static __always_inline __u32 cgroup(struct __sk_buff *skb)
{
	__u32 levels = vif_config.levels;

	for (int l = MAX_LEVEL; l > 0; l--) {
		struct vif_binding *b;
		__u64 id;

		if (!(levels & (1u << l)))
			continue;
		id = bpf_skb_ancestor_cgroup_id(skb, l);
		b = bpf_map_lookup_elem(&vif_cgroups, &id);
		if (b)
			return b->class;
	}
	return 0;
}

/*
 * The class of the socket's user, 0 for none. A socket in TIME_WAIT has no user:
 * for it the kernel names 65534, who may be bound (bpf_get_socket_uid,
 * net/core/filter.c, v6.12).
 */
static __always_inline __u32 user(struct __sk_buff *skb, struct bpf_sock *any)
{
	__u32 uid, *class;

	if (!bpf_sk_fullsock(any) && !bpf_get_listener_sock(any))
		return 0;
	uid = bpf_get_socket_uid(skb);
	class = bpf_map_lookup_elem(&vif_users, &uid);
	return class ? *class : 0;
}

/* What is known of a full socket, NULL for none. */
static __always_inline struct vif_socket *known(struct bpf_sock *full)
{
	return full ? bpf_sk_storage_get(&vif_sockets, full, NULL, BPF_SK_STORAGE_GET_F_CREATE) : NULL;
}

/* Gives a packet its socket's cached class, if that is of this generation. */
static __always_inline int cached(struct __sk_buff *skb, struct vif_socket *s, __u32 generation)
{
	__u64 cached = *(volatile __u64 *)&s->cached;

	if (cached >> 32 != generation)
		return 0;
	skb->priority = cached;
	return 1;
}

/*
 * The generation is read before the bindings are: a change in between leaves a
 * cached class of an old generation, which is searched again for the next packet.
 *
 * A packet that came in by another interface and still has a socket is from a
 * network namespace behind a bridge. Its cgroup says more than its interface, and
 * that more than its user, whose number may be another's outside. One socket may
 * send through several interfaces, so what its interface says is not cached.
 */
static __always_inline int classify(struct __sk_buff *skb, struct bpf_sock *any, struct vif_socket *s, int types)
{
	__u32 generation = vif_config.generation, class = 0;

	if (!any) {
		class = link(skb, any);
		skb->priority = class ? class : vif_config.rest;
		return TC_ACT_UNSPEC;
	}
	if (s) {
		if (types && s->accepted)
			served(skb, any, s, generation);
		if (cached(skb, s, generation))
			return TC_ACT_UNSPEC;
	}
	if (!s) { /* a SYN-ACK belongs to a request socket, which stands for its listener */
		struct bpf_sock *listener = bpf_get_listener_sock(any);

		if (listener)
			s = bpf_sk_storage_get(&vif_sockets, listener, NULL, BPF_SK_STORAGE_GET_F_CREATE);
		if (s)
			s->accepted = 1;
	}
	if (s && s->override)
		class = given(s->override);
	if (!class)
		class = cgroup(skb);
	if (!class && skb->ingress_ifindex) {
		class = link(skb, any);
		s = NULL;
	}
	if (!class)
		class = user(skb, any);
	if (!class)
		class = vif_config.rest;
	if (s)
		s->cached = (__u64)generation << 32 | class;
	skb->priority = class;
	return TC_ACT_UNSPEC;
}

/* A function of its own, so that its registers need not be saved nor its instructions fetched for most packets. */
static __attribute__((noinline)) int search(struct __sk_buff *skb, struct vif_socket *s)
{
	return classify(skb, skb->sk, s, 1);
}

SEC("tc")
int vif_egress(struct __sk_buff *skb)
{
	struct vif_socket *s = known(skb->sk);

	if (s && !s->accepted && cached(skb, s, vif_config.generation))
		return TC_ACT_UNSPEC;
	return search(skb, s);
}

/*
 * For a kernel that does not describe its types, or before 5.11: accepted connections stay with their
 * listener. The compiler of some machines does not take functions, so that there are none here.
 */
SEC("tc")
int vif_egress_plain(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	return classify(skb, sk, known(sk), 0);
}

/* Before 5.10 the storage helper does not take any socket and look for itself whether it is a full one. */
SEC("tc")
int vif_egress_old(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	return classify(skb, sk, known(sk ? bpf_sk_fullsock(sk) : NULL), 0);
}

/* The other way: the class id of the sender's net_cls cgroup, if it is one of ours. */
SEC("tc")
int vif_net_cls(struct __sk_buff *skb)
{
	__u32 id = bpf_get_cgroup_classid(skb);

	/* minor 0 would be HTB's unshaped queue */
	if (id >> 16 != MAJOR || !(id & 0xffff))
		id = vif_config.rest;
	skb->priority = id;
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual MIT/GPL";
