//go:build ignore

/* SPDX-License-Identifier: MIT */
/*
 * What no queue and no tc hook sees, refused before the socket can ask for it: a
 * packet socket that goes round the queues, an XDP socket, and a TCP socket that
 * becomes one of SMC, whose data goes through the memory of a card. It runs for
 * the sockets of one cgroup and all below it, whatever their owner may do.
 */
#include "bpf.h"

#define IPPROTO_TCP 6
#define SOL_PACKET 263
#define SOL_XDP 283
#define PACKET_QDISC_BYPASS 20
#define TCP_ULP 31

/* include/uapi/linux/bpf.h, v5.8 */
struct bpf_sockopt {
	union {
		struct bpf_sock *sk;
		__u64 : 64;
	} __attribute__((aligned(8)));
	union {
		char *optval;
		__u64 : 64;
	} __attribute__((aligned(8)));
	union {
		char *optval_end;
		__u64 : 64;
	} __attribute__((aligned(8)));
	int level, optname, optlen, retval;
};

SEC("cgroup/setsockopt")
int vif_narrow(struct bpf_sockopt *ctx)
{
	char *v = ctx->optval;

	if (ctx->level == SOL_XDP || (ctx->level == SOL_PACKET && ctx->optname == PACKET_QDISC_BYPASS))
		return 0; /* EPERM */
	if (ctx->level == IPPROTO_TCP && ctx->optname == TCP_ULP && v + 3 <= (char *)ctx->optval_end &&
	    v[0] == 's' && v[1] == 'm' && v[2] == 'c')
		return 0;
	/*
	 * Leave the value to the kernel as it is. Without this, values longer than a
	 * page, such as large tables of iptables, would be refused
	 * (__cgroup_bpf_run_filter_setsockopt, kernel/bpf/cgroup.c, v5.8).
	 */
	ctx->optlen = 0;
	return 1;
}

char _license[] SEC("license") = "MIT";
