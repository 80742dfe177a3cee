//go:build ignore

/* SPDX-License-Identifier: MIT */
/*
 * The class of a packet that an interface receives is that of the flow that it answers
 * to. vif_note stands behind the classifier at the egress hook, whichever that is, and
 * notes what skb->priority holds by then for the addresses that are on the wire, after
 * their translation. vif_receive looks it up at the ingress hook, before translation, and
 * sends the packet through the IFB that carries the receiving tree.
 *
 * An entry is its first owner's for as long as that sends, unless the kernel would deliver
 * the answers to another one. Otherwise a process that forges the packets of another's
 * connection would draw its download into its own branch.
 */
#include "bpf.h"
#include "kernel.h"
#include "mark.h"
#include "socket.h"
#include "bound.h"
#include "config.h"
#include "headers.h"
#include "match.h"

#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define SOCK_RAW 3
#define SOCK_PACKET 10
#define AF_INET 2
#define AF_INET6 10
#define AF_PACKET 17
#define TCP_CLOSE 7 /* also of a socket of UDP that is not connected */
#define TCP_LISTEN 10
#define PACKET_BROADCAST 1

#define IPPROTO_ICMP 1
#define IPPROTO_ICMPV6 58
#define IPPROTO_RAW 255

#define ICMP_ECHOREPLY 0
#define ICMP_ECHO 8
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129

/* A flow as the wire shows it, seen from this side. IPv4 lies in the first four bytes. */
struct vif_flow {
	__u8 local[16], remote[16];
	__u16 lport, rport; /* as they are in the packet; of an echo its number; 0: it has none */
	__u16 link;	    /* of a VLAN or PPPoE session */
	__u8 proto, v6;
};

/* Who may own a flow, the weaker first. */
#define FORGED 0 /* sent by a raw or packet socket, which may write what it likes */
#define FOUND 1	 /* nothing was sent: the socket that would receive it; or sent by an address whose way is another */
#define PASSED 2 /* sent on for another interface or network namespace, or translated */
#define OWNED 3	 /* sent by a socket of the protocol, which has these addresses from the kernel */
#define CLAIMED 4 /* the same, but for the address: an own one by IP_PKTINFO, or what translation made of it; not in the table */

#define LINK (1ull << 63)

struct vif_owner {
	__u64 cookie; /* of the socket, or LINK and the interface */
	__u32 class, generation; /* of bindings, as of the class */
	__u16 seen; /* when it sent last, in units of vif_receiving.shift */
	__u16 kind;
	__u16 looked; /* when it was last looked for who receives it, in the same */
	__u16 unused;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct vif_flow);
	__type(value, struct vif_owner);
} vif_flows SEC(".maps");

/* The parts of a packet carry no ports but for the first: the class of that, by what all have. */
struct vif_fragment {
	__u8 local[16], remote[16];
	__u32 id;
	__u16 link;
	__u8 proto, v6;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct vif_fragment);
	__type(value, __u32);
} vif_fragments SEC(".maps");

/* The classifier's own are put in place of these where that is a program by which processes are bound. */
volatile struct vif_config vif_config SEC(".data.vif") = {};

/* Sockets that have claimed a flow that is another's know their cookie. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} vif_names SEC(".maps");

/*
 * Version is that of vif_config and stays first, ifb the index of the interface that
 * carries the receiving tree. A unit of seen is as many jiffies as shift has bits, which
 * is about a second.
 */
struct vif_receiving {
	__u32 version, ifb, rest, shift;
};
volatile struct vif_receiving vif_receiving SEC(".data.rcv") = {};

/* What has been counted, on each processor. */
struct vif_counts {
	__u64 noted;  /* flows that were put into the table */
	__u64 missed; /* packets of which nobody knows the flow */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct vif_counts);
} vif_counts SEC(".maps");

#define STALE 10 /* units of silence after which a flow is anybody's */

struct packet {
	struct vif_flow flow;
	struct vif_frame frame;
};

/*
 * Reads the flow of a packet, sent or received. Returns 0 where it has none that could be told
 * again: what is for many is nobody's.
 */
static __always_inline int parse(struct __sk_buff *skb, struct packet *p, int sent)
{
	struct vif_flow *f = &p->flow;
	__u32 ports;

	framed(skb, &p->frame);
	f->link = p->frame.link;
	if (p->frame.proto == ETH_P_IP) {
		__u8 h[20];

		if (load(skb, &p->frame, h, sizeof(h)) || h[16] >= 224)
			return 0;
		f->proto = h[9];
		__builtin_memcpy(sent ? f->local : f->remote, h + 12, 4);
		__builtin_memcpy(sent ? f->remote : f->local, h + 16, 4);
		behind4(&p->frame, h);
	} else if (p->frame.proto == ETH_P_IPV6) {
		__u8 h[40];

		if (load(skb, &p->frame, h, sizeof(h)) || h[24] == 0xff)
			return 0;
		f->v6 = 1;
		__builtin_memcpy(sent ? f->local : f->remote, h + 8, 16);
		__builtin_memcpy(sent ? f->remote : f->local, h + 24, 16);
		f->proto = h[6];
		if (!behind6(skb, &p->frame, &f->proto))
			return 0;
	} else {
		return 0;
	}
	if (p->frame.part == LATER)
		return !sent;
	if (ported(f->proto)) {
		if (load(skb, &p->frame, &ports, sizeof(ports)))
			return 0;
		f->lport = ((__u16 *)&ports)[!sent];
		f->rport = ((__u16 *)&ports)[sent];
		return 1;
	}
	switch (f->proto) {
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6: {
		__u8 echo[8]; /* who asked knows itself by its number */
		__u8 want = f->proto == IPPROTO_ICMP ? sent ? ICMP_ECHO : ICMP_ECHOREPLY : sent ? ICMPV6_ECHO_REQUEST : ICMPV6_ECHO_REPLY;

		if (load(skb, &p->frame, echo, sizeof(echo)) || echo[0] != want)
			return 0;
		__builtin_memcpy(&f->lport, echo + 4, 2);
		return 1;
	}
	}
	return 1;
}

static __always_inline struct vif_counts *counts(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&vif_counts, &zero);
}

static __always_inline __u16 now(void)
{
	return bpf_jiffies64() >> (vif_receiving.shift & 31);
}

/* Whether a socket is bound to the address that a flow has here. */
static __always_inline int has(volatile struct bpf_sock *any, const struct vif_flow *f)
{
	__u32 a[4], is = any->src_ip4; /* read at once: the verifier takes no pointer into a socket */

	__builtin_memcpy(a, f->local, 16);
	if (!f->v6)
		return is == a[0];
	return any->src_ip6[0] == a[0] && any->src_ip6[1] == a[1] && any->src_ip6[2] == a[2] && any->src_ip6[3] == a[3];
}

/*
 * Who sends a packet. Returns 0 where that is a tunnel: what it carries has the socket from
 * inside, and its answers are everybody's.
 */
static __always_inline int sender(struct __sk_buff *skb, const struct vif_flow *f, struct vif_owner *o)
{
	struct bpf_sock *any = skb->sk, *full;
	__u32 index = skb->ingress_ifindex;

	if (!any) {
		if ((skb->mark & VIF_MARK_MASK) == VIF_MARK)
			index = (skb->mark & VIF_MARK_INDEX) << 16 | (skb->tc_index & 0xffff);
		o->kind = PASSED;
		o->cookie = LINK | index;
		return 1;
	}
	o->cookie = bpf_get_socket_cookie(skb);
	o->kind = index || any->src_port != HOST16(f->lport) ? PASSED : (f->proto == IPPROTO_TCP || f->proto == IPPROTO_UDP) && !has(any, f) ? CLAIMED : OWNED;
	full = bpf_sk_fullsock(any);
	if (!full) /* a request for a connection, or one that lingers */
		return f->proto == IPPROTO_TCP;
	if (full->type == SOCK_RAW || full->type == SOCK_PACKET || full->family == AF_PACKET) {
		o->kind = FORGED;
		return full->family == AF_PACKET || full->protocol == IPPROTO_RAW || full->protocol == f->proto;
	}
	return full->protocol == f->proto;
}

/* The socket that would receive the answers to a flow, NULL for none. It has to be released. */
static __always_inline struct bpf_sock *look(struct __sk_buff *skb, const struct vif_flow *f)
{
	struct bpf_sock_tuple t = {};
	__u32 size = sizeof(t.ipv4);

	if (f->v6) {
		__builtin_memcpy(t.ipv6.saddr, f->remote, 16);
		__builtin_memcpy(t.ipv6.daddr, f->local, 16);
		t.ipv6.sport = f->rport;
		t.ipv6.dport = f->lport;
		size = sizeof(t.ipv6);
	} else {
		__builtin_memcpy(&t.ipv4.saddr, f->remote, 4);
		__builtin_memcpy(&t.ipv4.daddr, f->local, 4);
		t.ipv4.sport = f->rport;
		t.ipv4.dport = f->lport;
	}
	if (f->proto == IPPROTO_TCP)
		return bpf_skc_lookup_tcp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
	if (f->proto == IPPROTO_UDP)
		return bpf_sk_lookup_udp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
	return NULL;
}

/* Where answers to a flow would go from here. */
#define HERE 0	 /* or nobody knows */
#define BACK 1	 /* to where it came from */
#define ASTRAY 2 /* not to its sender, whatever address he has; or not as IP, by a bridge */

static __always_inline int way(struct __sk_buff *skb, const struct vif_flow *f)
{
	struct bpf_fib_lookup to = {.family = f->v6 ? AF_INET6 : AF_INET, .l4_protocol = f->proto, .ifindex = skb->ifindex};
	long is;

	__builtin_memcpy(to.src, f->remote, 16);
	__builtin_memcpy(to.dst, f->local, 16);
	is = bpf_fib_lookup(skb, &to, sizeof(to), 0);
	if (is != BPF_FIB_LKUP_RET_SUCCESS && is != BPF_FIB_LKUP_RET_NO_NEIGH)
		return HERE;
	return to.ifindex == skb->ingress_ifindex ? BACK : ASTRAY;
}

/* Whether a socket has this peer alone. */
static __always_inline int connected(struct bpf_sock *full)
{
	return full->state != TCP_LISTEN && full->state != TCP_CLOSE;
}

/* To whom the kernel would deliver the answers to what is being sent. */
#define NOBODY 0
#define ANYONE 1 /* another, who takes them from all */
#define PEER 2	 /* another, who has this peer alone */
#define SENDER 3

static __always_inline int heir(struct __sk_buff *skb, const struct vif_flow *f, struct vif_owner *mine)
{
	struct bpf_sock *found, *full, *own = skb->sk;
	__u64 *name;
	int is = PEER;

	own = own ? bpf_sk_fullsock(own) : NULL;
	if (own && own->type != SOCK_RAW)
		bpf_sk_storage_get(&vif_names, own, &mine->cookie, BPF_SK_STORAGE_GET_F_CREATE);
	found = look(skb, f);
	if (!found)
		return NOBODY;
	full = bpf_sk_fullsock(found);
	if (full) {
		name = bpf_sk_storage_get(&vif_names, full, NULL, 0);
		if (name && *name == mine->cookie)
			is = SENDER;
		else if (!connected(full))
			is = ANYONE;
	} else if (skb->sk && !own) {
		is = SENDER;
	}
	bpf_sk_release(found);
	return is;
}

SEC("tc")
int vif_note(struct __sk_buff *skb)
{
	struct vif_owner *o, mine = {};
	struct packet p = {};
	struct vif_counts *n;
	int goes, is;

	if (!parse(skb, &p, 1) || !sender(skb, &p.flow, &mine))
		return TC_ACT_UNSPEC;
	mine.class = skb->priority;
	if ((mine.class >> 16 & ~STAYS) != MAJOR)
		mine.class = vif_receiving.rest;
	mine.generation = vif_config.generation;
	mine.seen = mine.looked = now();
	o = bpf_map_lookup_elem(&vif_flows, &p.flow);
	if (o && o->cookie == mine.cookie) {
		if (o->class != mine.class)
			o->class = mine.class;
		if (o->generation != mine.generation)
			o->generation = mine.generation;
		if (o->seen != mine.seen)
			o->seen = mine.seen;
		return TC_ACT_UNSPEC;
	}
	if (!o && mine.class == vif_receiving.rest) /* where unknown ones go */
		return TC_ACT_UNSPEC;
	goes = way(skb, &p.flow);
	if (goes == ASTRAY && mine.kind > FOUND)
		mine.kind = FOUND;
	is = goes == BACK ? NOBODY : o || mine.kind != OWNED ? heir(skb, &p.flow, &mine) : SENDER;
	if (mine.kind == CLAIMED) { /* an unbound socket has any address, and any socket may send by an own address that another one is bound to */
		if (is == PEER || is == ANYONE)
			return TC_ACT_UNSPEC;
		mine.kind = is == SENDER ? OWNED : PASSED;
	}
	if (is != SENDER || mine.kind != OWNED) {
		/* an own address cannot be forged from outside but for IPv6 (__fib_validate_source, net/ipv4/fib_frontend.c, v6.12) */
		if (is == PEER || (is == ANYONE && (mine.kind == FORGED || (mine.kind == PASSED && p.flow.v6))))
			return TC_ACT_UNSPEC;
		if (o && mine.kind <= o->kind && !(mine.kind == OWNED && p.flow.proto == IPPROTO_TCP) && (__u16)(mine.seen - o->seen) <= STALE)
			return TC_ACT_UNSPEC;
	}
	if (!bpf_map_update_elem(&vif_flows, &p.flow, &mine, BPF_ANY) && !o && (n = counts()))
		n->noted++;
	return TC_ACT_UNSPEC;
}

extern void *bpf_rdonly_cast(const void *object, __u32 type) __attribute__((section(".ksyms")));

/*
 * The class of a socket that has sent nothing by this interface yet: what is known of it,
 * else of the cgroup and user that it was made by.
 */
static __always_inline __u32 class_of(struct bpf_sock *found, __u32 generation)
{
	struct vif_socket *s;
	struct sock *sk;
	__u64 cached = 0, override = 0;

	s = bpf_sk_storage_get(&vif_sockets, found, NULL, 0);
	if (s) {
		cached = *(volatile __u64 *)&s->cached;
		if (cached >> 32 == generation)
			return cached;
		override = s->override;
	}
	if (!override) {
		sk = bpf_rdonly_cast(found, __builtin_btf_type_id(*(struct sock *)0, 1));
		override = bound(sk->sk_cgrp_data.cgroup, sk->sk_uid.val);
	}
	return override ? given(override) : 0;
}

/*
 * The class of whoever would receive a packet, 0 where that is nobody. Alone says that it
 * may be noted: not for one who hears anybody, whom strangers could fill the table by.
 */
static __always_inline __u32 receiver(struct __sk_buff *skb, const struct vif_flow *f, __u32 generation, int *alone)
{
	struct bpf_sock *sk = look(skb, f), *full;
	__u32 class = 0;

	if (!sk)
		return 0;
	full = bpf_sk_fullsock(sk);
	if (full) {
		class = class_of(full, generation);
		if (!class)
			class = vif_receiving.rest;
		*alone = connected(full);
	}
	bpf_sk_release(sk);
	return class;
}

/*
 * Whether it is time to look for who receives a flow of a socket here: that may be closed, and
 * its port another's who does not send. With TCP, who receives sends.
 */
static __always_inline int due(struct vif_owner *o, const struct vif_flow *f)
{
	__u16 at = now();

	if (f->proto != IPPROTO_UDP || (o->kind != OWNED && o->cookie) || o->looked == at)
		return 0;
	o->looked = at;
	return 1;
}

static __always_inline void receive(struct __sk_buff *skb, int looks, int matches)
{
	__u32 class = 0, generation = looks ? vif_config.generation : 0, *first;
	struct vif_fragment part = {};
	struct packet p = {};
	struct vif_counts *n;
	struct vif_owner *o;
	int alone = 0;

	if (skb->pkt_type == PACKET_BROADCAST || !parse(skb, &p, 0))
		goto out;
	if (p.frame.part) {
		__builtin_memcpy(part.local, p.flow.local, 32);
		part.id = p.frame.fragment;
		part.link = p.flow.link;
		part.proto = p.flow.v6 ? 0 : p.flow.proto; /* of the later ones it may be another header's */
		part.v6 = p.flow.v6;
	}
	if (p.frame.part == LATER) {
		first = bpf_map_lookup_elem(&vif_fragments, &part);
		if (first)
			class = *first;
		goto out;
	}
	o = bpf_map_lookup_elem(&vif_flows, &p.flow);
	if (looks && (!o || o->kind == FORGED || (o->kind != PASSED && (o->generation != generation || due(o, &p.flow)))))
		class = receiver(skb, &p.flow, generation, &alone);
	if (o && o->kind == OWNED) {
		if (class)
			o->class = class;
		if (looks)
			o->generation = generation;
		class = o->class;
	} else if (class && alone) {
		struct vif_owner found = {.class = class, .generation = generation, .seen = now(), .looked = now(), .kind = FOUND};

		if (!bpf_map_update_elem(&vif_flows, &p.flow, &found, BPF_ANY) && !o && (n = counts()))
			n->noted++;
	} else if (o && !class) { /* nobody has a better right to it */
		class = o->class;
	}
	if (!class && (n = counts()))
		n->missed++;
	if (p.frame.part == FIRST && class)
		bpf_map_update_elem(&vif_fragments, &part, &class, BPF_ANY);
	else if (p.frame.part == FIRST) /* the number was another's once */
		bpf_map_delete_elem(&vif_fragments, &part);
out:
	if (!class)
		class = vif_receiving.rest;
	if (class >> 16 != MAJOR) /* of what has been bound to a rest itself */
		class = MAJOR << 16 | (class & 0xffff);
	else if (matches)
		class = MAJOR << 16 | refine(skb, class & 0xffff, 1);
	skb->priority = class;
}

/*
 * Those for an interface whose tree has matches go on from the class of whoever is bound, as
 * vif_match does for what is sent, and by its maps.
 */
SEC("tc")
int vif_receive(struct __sk_buff *skb)
{
	receive(skb, 1, 0);
	return bpf_redirect(vif_receiving.ifb, 0);
}

SEC("tc")
int vif_receive_match(struct __sk_buff *skb)
{
	receive(skb, 1, 1);
	return bpf_redirect(vif_receiving.ifb, 0);
}

/* For an interface without a link-layer header, see vif_receive_old. */
SEC("tc")
int vif_receive_bare(struct __sk_buff *skb)
{
	receive(skb, 1, 0);
	return -1;
}

SEC("tc")
int vif_receive_bare_match(struct __sk_buff *skb)
{
	receive(skb, 1, 1);
	return -1;
}

/* For ways by which a socket does not tell who has it, and kernels before 6.2, which do not let it be looked at. */
SEC("tc")
int vif_receive_plain(struct __sk_buff *skb)
{
	receive(skb, 0, 0);
	return bpf_redirect(vif_receiving.ifb, 0);
}

SEC("tc")
int vif_receive_plain_match(struct __sk_buff *skb)
{
	receive(skb, 0, 1);
	return bpf_redirect(vif_receiving.ifb, 0);
}

/*
 * Before 6.4 the IFB drops what the helper sends to it (59e498a3289f). There, and from an
 * interface without a link-layer header, of which it drops that always
 * (__bpf_redirect_common, net/core/filter.c, v6.12), the filter has an action that
 * redirects instead: it is carried out for what is -1.
 */
SEC("tc")
int vif_receive_old(struct __sk_buff *skb)
{
	receive(skb, 0, 0);
	return -1;
}

SEC("tc")
int vif_receive_old_match(struct __sk_buff *skb)
{
	receive(skb, 0, 1);
	return -1;
}

char _license[] SEC("license") = "Dual MIT/GPL";
