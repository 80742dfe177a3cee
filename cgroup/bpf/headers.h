/* SPDX-License-Identifier: MIT */
/* What lies in front of what a packet carries. */
#define IPPROTO_HOPOPTS 0
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_DCCP 33
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_AH 51
#define IPPROTO_DSTOPTS 60
#define IPPROTO_SCTP 132
#define IPPROTO_UDPLITE 136

#define ETH_P_IP 0x0800
#define ETH_P_8021Q 0x8100
#define ETH_P_IPV6 0x86dd
#define ETH_P_PPP_SES 0x8864
#define ETH_P_8021AD 0x88a8
#define PPP_IP 0x0021
#define PPP_IPV6 0x0057

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define HOST16(x) __builtin_bswap16(x)
#define HOST32(x) __builtin_bswap32(x)
#define HOST64(x) __builtin_bswap64(x)
#else
#define HOST16(x) (x)
#define HOST32(x) (x)
#define HOST64(x) (x)
#endif

/* What is known of a packet in front of what IP carries. */
struct vif_frame {
	__u32 from, at; /* offsets count from one of the kernel's headers */
	__u16 proto;	/* of the network */
	__u16 link;	/* all tags and sessions in one number */
	__u16 vlan;	/* of the outermost tag */
	__u8 part;	/* FIRST, LATER */
	__u32 fragment; /* its number, where it is a part */
};

#define FIRST 1
#define LATER 2

static __always_inline int load(struct __sk_buff *skb, const struct vif_frame *f, void *to, __u32 len)
{
	return bpf_skb_load_bytes_relative(skb, f->at, to, len, f->from);
}

/*
 * What lies in front of the network header. A tag in the frame may be behind where the
 * network header is said to be (vlan_insert_tag, include/linux/if_vlan.h, v6.12).
 */
static __always_inline void framed(struct __sk_buff *skb, struct vif_frame *f)
{
	f->proto = HOST16((__u16)skb->protocol);
	f->vlan = f->link = skb->vlan_present ? skb->vlan_tci & 0xfff : 0;
	f->from = BPF_HDR_START_NET;
	if (f->proto == ETH_P_8021Q || f->proto == ETH_P_8021AD || f->proto == ETH_P_PPP_SES) {
		f->from = BPF_HDR_START_MAC;
		f->at = 14;
	}
	for (int i = 0; i < 2 && (f->proto == ETH_P_8021Q || f->proto == ETH_P_8021AD); i++) {
		__u16 tag[2];

		if (load(skb, f, tag, sizeof(tag))) {
			f->proto = 0;
			return;
		}
		f->link = f->link * 31 + (HOST16(tag[0]) & 0xfff);
		if (!f->vlan)
			f->vlan = HOST16(tag[0]) & 0xfff;
		f->proto = HOST16(tag[1]);
		f->at += sizeof(tag);
	}
	if (f->proto == ETH_P_PPP_SES) {
		__u16 session[4]; /* version and code, number, length, protocol inside */

		if (load(skb, f, session, sizeof(session))) {
			f->proto = 0;
			return;
		}
		f->link = f->link * 31 + HOST16(session[1]);
		f->at += sizeof(session);
		f->proto = HOST16(session[3]);
		f->proto = f->proto == PPP_IP ? ETH_P_IP : f->proto == PPP_IPV6 ? ETH_P_IPV6 : 0;
	}
}

/* Goes behind the header of IPv4, which has been read. */
static __always_inline void behind4(struct vif_frame *f, const __u8 *h)
{
	__u32 off = (h[6] & 0x1f) << 8 | h[7];

	if (off || h[6] & 0x20) {
		f->fragment = h[4] << 8 | h[5];
		f->part = off ? LATER : FIRST;
	}
	f->at += (h[0] & 15) * 4;
}

/* Goes behind one extension of IPv6, to what proto then is. Returns 1, 0 where it is none or the last, -1 where it is cut off. */
static __always_inline int extension(struct __sk_buff *skb, struct vif_frame *f, __u8 *proto)
{
	__u8 next[8], is = *proto;

	if (is != IPPROTO_HOPOPTS && is != IPPROTO_ROUTING && is != IPPROTO_DSTOPTS && is != IPPROTO_FRAGMENT && is != IPPROTO_AH)
		return 0;
	if (load(skb, f, next, sizeof(next)))
		return -1;
	*proto = next[0];
	if (is == IPPROTO_FRAGMENT) {
		__u32 off = (next[2] << 8 | next[3]) & 0xfff8;

		if (off || next[3] & 1) {
			__builtin_memcpy(&f->fragment, next + 4, 4);
			f->part = off ? LATER : FIRST;
		}
		f->at += 8;
		return !off;
	}
	f->at += is == IPPROTO_AH ? (next[1] + 2) * 4 : (next[1] + 1) * 8;
	return 1;
}

/*
 * Goes behind the header of IPv6 and up to six extensions. Returns 0 where they are cut off.
 * It is no loop: the compiler may have one go back by what is no jump, which is refused
 * (visit_insn, kernel/bpf/verifier.c, v6.1).
 */
static __always_inline int behind6(struct __sk_buff *skb, struct vif_frame *f, __u8 *proto)
{
	int is;

	f->at += 40;
	is = extension(skb, f, proto);
	if (is == 1)
		is = extension(skb, f, proto);
	if (is == 1)
		is = extension(skb, f, proto);
	if (is == 1)
		is = extension(skb, f, proto);
	if (is == 1)
		is = extension(skb, f, proto);
	if (is == 1)
		is = extension(skb, f, proto);
	return is >= 0;
}

/* Whether what IP carries begins with two ports. */
static __always_inline int ported(__u8 proto)
{
	switch (proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_DCCP:
	case IPPROTO_SCTP:
	case IPPROTO_UDPLITE:
		return 1;
	}
	return 0;
}
