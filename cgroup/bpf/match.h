/* SPDX-License-Identifier: MIT */
/*
 * Which branch below that of its sender, or receiver, carries a packet, by the matches of a
 * tree; what hierarchy.Branch.Decide says.
 *
 * A scope is a branch below which there are matches. It is known by the minor number of its
 * leaf: that is what a packet has when it is known who is bound, and what it gets by a match.
 * A look-up in a scope goes through the pairs of lengths that prefixes of senders and
 * receivers have there, the longest first, and asks a hash for the addresses cut to them.
 * One without an address has a pair of lengths, too: none. Most of the look-ups are saved by
 * a table that knows for the first bits of an address which lengths there are behind them.
 *
 * What is found is a branch, or a group: rules that have the same addresses, and differ in
 * what else they ask for. In it, a second hash is asked for each kind of rule: those that
 * have the same keys. A port is looked up as the first of the ports around it that no rule
 * tells apart.
 *
 * Every entry has two values, of which vif_matching.slot says which is in force. A change
 * writes the other of those entries that differ, and then this one word. What is not in
 * force is 0.
 */
#include "conntrack.h"

#define SLOTS 2
#define MAX_PAIRS 64
#define MAX_KINDS 32
#define MAX_MATCHES 8 /* on the way down; of classes there are as many levels (TC_HTB_MAXDEPTH, net/sched/sch_htb.c, v6.12) */

/* Version counts the layouts of these maps and stays first. */
struct vif_matching {
	__u32 version, slot;
	__u32 tracks; /* the programs ask connection tracking */
	__u32 macs;   /* the interface has such addresses, and a rule asks for them */
	__u32 hosts;  /* a rule asks for the address of our side before translation */
};
volatile struct vif_matching vif_matching SEC(".data.mtc") = {};

struct vif_word {
	__u32 slot[SLOTS];
};

struct vif_scope {
	__u16 minor;
	__u8 received, family; /* 4, 6; 0: it is not IP */
};

/* The list of pairs of a scope. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct vif_scope);
	__type(value, struct vif_word);
} vif_scopes SEC(".maps");

/* Lengths of prefixes, and their bits in vif_lengths, none where that does not help. */
struct vif_pair {
	__u8 from, to, from_low, to_low; /* of IPv6 how much of them lies in the lower half */
	__u32 senders, receivers;
	__u32 host; /* 1: on our side of addresses as they are before translation */
};

/* Those before the one at first are for what has one of these bits alone. */
struct vif_pairs {
	__u32 many, first;
	__u32 senders, receivers;
	struct vif_pair pairs[MAX_PAIRS];
};

/* Lists of pairs, which do not change while they are gone by: several scopes may have one. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct vif_pairs);
} vif_lists SEC(".maps");

/*
 * What the first bits of an address have behind them, by side: of IPv4 the first 16, of IPv6
 * a number made of the first 32. Lengths of IPv6 share their bits by four, and both families
 * share the table: it may say too much.
 */
struct vif_lengths {
	struct vif_word sides[2][65536];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct vif_lengths);
} vif_lengths SEC(".maps");

/* Addresses in the order of this processor. */
struct vif_v4 {
	__u16 minor;
	__u8 from, to; /* lengths; V4_RECEIVED, V4_NONE, V4_HOST */
	__u32 sender, receiver;
};

/* An entry with 0xff for both lengths is no rule's: see compile_linux.go. */
#define V4_RECEIVED 0x80 /* in from */
#define V4_NONE 0x40	 /* in from: it is not IP */
#define V4_HOST 0x80	 /* in to: vif_pair.host */

struct vif_v6 {
	__u16 minor;
	__u8 from, to;
	__u32 received; /* V6_HOST */
	__u64 sender[2], receiver[2];
};

#define V6_HOST 2 /* vif_pair.host */

/* A branch and the lower bits of its rank, or the number of a group and of its list of kinds. */
struct vif_found {
	__u64 slot[SLOTS];
};

#define FOUND_GROUP(v) ((__u32)((v) >> 32))
#define FOUND_KINDS(v) ((__u32)(v))
#define FOUND_MINOR(v) ((__u32)(v) >> 16)
#define FOUND_RANK(v) ((__u32)(v)&RANKS)

#define RANKS 127 /* of rules that have the same addresses: hierarchy/match/rank.go */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct vif_v4);
	__type(value, struct vif_found);
} vif_v4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct vif_v6);
	__type(value, struct vif_found);
} vif_v6 SEC(".maps");

/* Rules of one kind have the same keys, and one mask for the mark. */
struct vif_kind {
	__u8 fields, rank; /* the highest */
	__u16 unused;
	__u32 mask;
};

#define BY_PROTO 1
#define BY_FAR 2
#define BY_NEAR 4
#define BY_DSCP 8
#define BY_MARK 16
#define BY_VLAN 32
#define BY_MAC 64 /* on our side */
#define BY_MAC_FAR 128

#define MUST (BY_PROTO | BY_FAR | BY_NEAR | BY_VLAN) /* what not every packet has */
#define IF(by, field) (-(__u32)!!((by) & (field)))

struct vif_kinds {
	__u32 many;
	struct vif_kind kinds[MAX_KINDS];
};

/* Lists of kinds, as vif_lists. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct vif_kinds);
} vif_kinds SEC(".maps");

/* What a rule asks for besides addresses; 0 what it does not. */
struct vif_rule {
	__u32 group, mark, mask;
	__u16 far, near, vlan; /* ports as vif_ports has them */
	__u16 mac[3];
	__u8 proto, dscp, fields, unused;
};

/* The branch, and the lower bits of the rank. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct vif_rule);
	__type(value, struct vif_word);
} vif_rules SEC(".maps");

/* For each port the first of those around it that no rule tells apart; 0: no rule asks for it. */
struct vif_ports {
	__u16 ports[65536][SLOTS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct vif_ports);
} vif_ports SEC(".maps");

/* The parts of a packet carry no ports but for the first: what all have of it. */
struct vif_parts {
	__u64 sender[2], receiver[2];
	__u32 fragment;
	__u16 link;
	__u8 proto, received; /* of IPv6 no proto: the later ones may have another header's */
};

struct vif_part {
	__u64 host[2]; /* the address of our side before translation */
	__u16 ports[2];
	__u8 proto, unused[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct vif_parts);
	__type(value, struct vif_part);
} vif_parts SEC(".maps");

/* The addresses of a packet. IPv4 is in the first of its words. */
struct vif_ends {
	__u64 sender[2], receiver[2];
	__u32 senders, receivers; /* bits of vif_lengths */
};

/* A packet as the look-ups need it. */
struct vif_seen {
	struct vif_ends ends[2]; /* on the wire; where a rule asks for it with that of our side before translation */
	__u32 mark, slot;
	__u16 ports[2]; /* as they are in the packet */
	__u16 far, near, vlan;
	__u8 proto, dscp;
	__u16 macs[2][3]; /* ours, and the far one */
	__u8 family, received, has, unused; /* has: what it has of MUST */
};

/*
 * The packet of this processor, for functions that the kernel checks by themselves, without
 * those who call them: else a look-up would be too long for it. Programs at the hooks of an
 * interface do not interrupt each other.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct vif_seen);
} vif_seen SEC(".maps");

static __always_inline struct vif_seen *seen(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&vif_seen, &zero);
}

/* The first bits of a word, up to all 64. */
static __always_inline __u64 cut(__u64 word, __u32 bits)
{
	return word & ~(~0ull >> (bits / 2 & 63) >> ((bits - bits / 2) & 63));
}

static __always_inline __u32 lengths(const struct vif_seen *p, __u32 side, const __u64 *address)
{
	__u32 zero = 0, at = address[0] >> 16;
	struct vif_lengths *l = bpf_map_lookup_elem(&vif_lengths, &zero);

	if (p->family == 6)
		at = (address[0] >> 48) * 40503 + (address[0] >> 32);
	return l ? l->sides[side][at & 0xffff].slot[p->slot & 1] : 0;
}

/* The rule of a group that fits, 0 for none: branch and rank. */
__attribute__((noinline)) __u32 vif_in_group(__u32 group, __u32 list)
{
	struct vif_kinds *k = bpf_map_lookup_elem(&vif_kinds, &list);
	struct vif_seen *p = seen();
	__u32 best = 0;

	if (!k || !p)
		return 0;
	for (__u32 i = 0; i < MAX_KINDS && i < k->many; i++) {
		__u8 by = k->kinds[i].fields;
		struct vif_rule r = {.group = group, .fields = by};
		struct vif_word *w;
		__u32 is;

		if (FOUND_RANK(best) >= k->kinds[i].rank)
			break;
		if (by & MUST & ~p->has)
			continue;
		/* without branches: the kernel's check follows each of them */
		r.proto = p->proto & IF(by, BY_PROTO);
		r.far = p->far & IF(by, BY_FAR);
		r.near = p->near & IF(by, BY_NEAR);
		r.dscp = p->dscp & IF(by, BY_DSCP);
		r.vlan = p->vlan & IF(by, BY_VLAN);
		r.mask = k->kinds[i].mask;
		r.mark = p->mark & r.mask;
		for (int m = 0; m < 3; m++)
			r.mac[m] = (p->macs[0][m] & IF(by, BY_MAC)) | (p->macs[1][m] & IF(by, BY_MAC_FAR));
		w = bpf_map_lookup_elem(&vif_rules, &r);
		is = w ? w->slot[p->slot & 1] : 0;
		if (is && (!best || FOUND_RANK(is) > FOUND_RANK(best)))
			best = is;
	}
	return best;
}

/* The branch below a scope that carries the packet, 0 for none. */
__attribute__((noinline)) __u32 vif_below(__u32 minor)
{
	struct vif_scope s = {.minor = minor};
	struct vif_seen *p = seen();
	__u32 most = 0, next = 0, first = 0, list;
	const struct vif_ends *e;
	struct vif_pairs *l;
	struct vif_word *w;

	if (!p)
		return 0;
	s.received = p->received;
	s.family = p->family;
	w = bpf_map_lookup_elem(&vif_scopes, &s);
	if (!w)
		return 0;
	list = w->slot[p->slot & 1];
	l = bpf_map_lookup_elem(&vif_lists, &list);
	if (!l)
		return 0;
	e = p->ends;
	if (!((e[0].senders | e[1].senders) & l->senders || (e[0].receivers | e[1].receivers) & l->receivers))
		first = l->first;
	for (__u32 n = 0; n < MAX_PAIRS; n++) {
		__u32 i = first + n, bits, rank;
		struct vif_found *f;
		struct vif_pair pair;
		__u64 is;

		if (i >= l->many)
			break;
		asm volatile("%0 &= %1" : "+r"(i) : "i"(MAX_PAIRS - 1)); /* for the kernel's check, which does not know */
		pair = l->pairs[i];
		bits = pair.from + pair.to;
		if (most >= (bits + 1) * (RANKS + 1))
			break;
		e = &p->ends[pair.host & 1];
		if ((e->senders & pair.senders) != pair.senders || (e->receivers & pair.receivers) != pair.receivers)
			continue;
		if (s.family == 6) {
			struct vif_v6 k = {.minor = minor, .from = pair.from, .to = pair.to, .received = s.received | pair.host * V6_HOST};

			k.sender[0] = cut(e->sender[0], pair.from - pair.from_low);
			k.sender[1] = cut(e->sender[1], pair.from_low);
			k.receiver[0] = cut(e->receiver[0], pair.to - pair.to_low);
			k.receiver[1] = cut(e->receiver[1], pair.to_low);
			f = bpf_map_lookup_elem(&vif_v6, &k);
		} else {
			struct vif_v4 k = {.minor = minor, .from = pair.from, .to = pair.to};

			k.from |= s.received * V4_RECEIVED | !s.family * V4_NONE;
			k.to |= pair.host * V4_HOST;
			k.sender = cut(e->sender[0], 32 + pair.from);
			k.receiver = cut(e->receiver[0], 32 + pair.to);
			f = bpf_map_lookup_elem(&vif_v4, &k);
		}
		is = f ? f->slot[p->slot & 1] : 0;
		if (FOUND_GROUP(is))
			is = vif_in_group(FOUND_GROUP(is), FOUND_KINDS(is));
		if (!is)
			continue;
		rank = bits * (RANKS + 1) + FOUND_RANK(is);
		if (rank > most) {
			most = rank;
			next = FOUND_MINOR(is);
		}
	}
	return next;
}

static __always_inline __u16 port(const struct vif_seen *p, __u16 n)
{
	struct vif_ports *all;
	__u32 zero = 0;

	all = bpf_map_lookup_elem(&vif_ports, &zero);
	return all ? all->ports[HOST16(n)][p->slot & 1] : 0;
}

/*
 * Writes what the address of our side is before translation, where connection tracking knows
 * the packet. What comes from the far side is of one direction of a connection, before that is
 * translated; what our side sends, not translated yet, of the other. Where the kernel does not
 * offer to be asked the loader takes this out.
 */
__attribute__((noinline)) int vif_before(struct __sk_buff *skb)
{
	struct bpf_ct_opts o = {.netns_id = BPF_F_CURRENT_NETNS};
	struct bpf_sock_tuple t = {};
	__u32 size = sizeof(t.ipv4), is[4];
	struct vif_seen *p = seen();
	const __u64 *far, *local;
	struct nf_conn *ct;
	__u64 *near;
	__u32 in;

	if (!p || (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP))
		return 0;
	in = p->received & 1;
	far = in ? p->ends[0].sender : p->ends[0].receiver;
	local = in ? p->ends[0].receiver : p->ends[0].sender;
	o.l4proto = p->proto;
	if (p->family == 6) {
		__u64 a[4] = {HOST64(far[0]), HOST64(far[1]), HOST64(local[0]), HOST64(local[1])};

		__builtin_memcpy(t.ipv6.saddr, a, sizeof(a));
		t.ipv6.sport = p->ports[!in];
		t.ipv6.dport = p->ports[in];
		size = sizeof(t.ipv6);
	} else {
		t.ipv4.saddr = HOST32((__u32)far[0]);
		t.ipv4.daddr = HOST32((__u32)local[0]);
		t.ipv4.sport = p->ports[!in];
		t.ipv4.dport = p->ports[in];
	}
	ct = bpf_skb_ct_lookup(skb, &t, size, &o, sizeof(o));
	if (!ct)
		return 0;
	if (o.dir) {
		__builtin_memcpy(is, ct->tuplehash[0].tuple.src.u3.all, sizeof(is));
		asm volatile("" : : : "memory"); /* two reads, for an offset that varies is refused (check_ptr_to_btf_access, kernel/bpf/verifier.c, v6.12) */
	} else {
		__builtin_memcpy(is, ct->tuplehash[1].tuple.src.u3.all, sizeof(is));
	}
	bpf_ct_release(ct);
	near = in ? p->ends[1].receiver : p->ends[1].sender;
	if (p->family == 6) {
		near[0] = (__u64)HOST32(is[0]) << 32 | HOST32(is[1]);
		near[1] = (__u64)HOST32(is[2]) << 32 | HOST32(is[3]);
	} else {
		near[0] = HOST32(is[0]);
	}
	return 0;
}

/* Reads the headers of a packet. What cannot be read is not there. */
static __always_inline void read(struct __sk_buff *skb, struct vif_seen *p, int received)
{
	struct vif_part *first = NULL;
	struct vif_parts whole = {};
	struct vif_frame f = {};
	struct vif_ends *e = p->ends;
	__u16 ports[2] = {};

	p->slot = vif_matching.slot;
	p->received = received;
	p->mark = skb->mark;
	p->family = p->proto = p->dscp = p->far = p->near = 0;
	__builtin_memset(e, 0, sizeof(*e));
	e[1].senders = e[1].receivers = 0;
	if (vif_matching.macs) {
		__u16 macs[6] = {};

		bpf_skb_load_bytes_relative(skb, 0, macs, sizeof(macs), BPF_HDR_START_MAC);
		__builtin_memcpy(p->macs[!received], macs, 6);
		__builtin_memcpy(p->macs[received], macs + 3, 6);
	}
	framed(skb, &f);
	p->vlan = f.vlan;
	if (f.proto == ETH_P_IP) {
		__u32 h[5];
		const __u8 *b = (const __u8 *)h;

		if (load(skb, &f, h, sizeof(h)))
			return;
		p->family = 4;
		p->dscp = b[1] >> 2;
		p->proto = b[9];
		e->sender[0] = HOST32(h[3]);
		e->receiver[0] = HOST32(h[4]);
		behind4(&f, b);
	} else if (f.proto == ETH_P_IPV6) {
		__u64 h[5];
		const __u8 *b = (const __u8 *)h;
		__u8 proto;

		if (load(skb, &f, h, sizeof(h)))
			return;
		p->family = 6;
		p->dscp = (b[0] & 15) << 2 | b[1] >> 6;
		e->sender[0] = HOST64(h[1]);
		e->sender[1] = HOST64(h[2]);
		e->receiver[0] = HOST64(h[3]);
		e->receiver[1] = HOST64(h[4]);
		proto = b[6];
		if (!behind6(skb, &f, &proto))
			f.part = 0, proto = 0;
		p->proto = proto;
	} else {
		return;
	}
	e->senders = lengths(p, 0, e->sender);
	e->receivers = lengths(p, 1, e->receiver);
	if (f.part != LATER && ported(p->proto) && load(skb, &f, ports, sizeof(ports)))
		ports[0] = ports[1] = 0;
	if (f.part) {
		whole.fragment = f.fragment;
		whole.link = f.link;
		whole.received = received;
		__builtin_memcpy(whole.sender, e->sender, 32);
		if (p->family == 4)
			whole.proto = p->proto;
	}
	if (f.part == LATER) {
		first = bpf_map_lookup_elem(&vif_parts, &whole);
		if (first) {
			ports[0] = first->ports[0];
			ports[1] = first->ports[1];
			p->proto = first->proto;
		}
	}
	if (vif_matching.hosts) {
		__u64 *near = received ? e[1].receiver : e[1].sender;

		p->ports[0] = ports[0];
		p->ports[1] = ports[1];
		__builtin_memcpy(e[1].sender, e->sender, 32);
		if (first)
			__builtin_memcpy(near, first->host, 16);
		else if (f.part != LATER)
			vif_before(skb);
		e[1].senders = lengths(p, 0, e[1].sender);
		e[1].receivers = lengths(p, 1, e[1].receiver);
	}
	if (f.part == FIRST) {
		struct vif_part is = {.ports = {ports[0], ports[1]}, .proto = p->proto};

		__builtin_memcpy(is.host, received ? e[1].receiver : e[1].sender, 16);
		bpf_map_update_elem(&vif_parts, &whole, &is, BPF_ANY);
	}
	p->near = port(p, ports[received]);
	p->far = port(p, ports[!received]);
}

static __always_inline void see(struct __sk_buff *skb, struct vif_seen *p, int received)
{
	read(skb, p, received);
	p->has = (p->proto ? BY_PROTO : 0) | (p->far ? BY_FAR : 0) | (p->near ? BY_NEAR : 0) | (p->vlan ? BY_VLAN : 0);
}

/* The minor number of the leaf that carries a packet of who has this one. */
static __always_inline __u32 refine(struct __sk_buff *skb, __u32 minor, int received)
{
	struct vif_seen *p = seen();

	if (!p)
		return minor;
	see(skb, p, received);
#pragma unroll
	for (int i = 0; i < MAX_MATCHES; i++) {
		__u32 next = vif_below(minor);

		if (!next || next == minor)
			break;
		minor = next;
	}
	return minor;
}
