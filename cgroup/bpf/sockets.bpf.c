//go:build ignore

/* SPDX-License-Identifier: MIT */
/*
 * Gives the open sockets of processes the override of a cgroup, see socket.h.
 */
#include "bpf.h"
#include "kernel.h"
#include "socket.h"

#define AF_INET 2
#define AF_INET6 10
#define AF_PACKET 17
#define IPPROTO_MPTCP 262
#define TCP_LISTEN 10
#define MAX_QUEUE 4096 /* net.core.somaxconn as it comes */

/* The classifier's own, put in place of this. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct vif_socket);
} vif_sockets SEC(".maps");

/* The processes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __u32);
} vif_tasks SEC(".maps");

/*
 * By their addresses: connections that wait to be accepted, and sockets of MPTCP,
 * whose connections are sockets of their own. No descriptor leads to either.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u32);
} vif_behind SEC(".maps");

volatile const __u64 vif_home = 0; /* the cgroup's id */

/* What is told of a socket that got the override. */
struct vif_moved {
	__u64 inode; /* 0: there is no file */
	__u32 tgid;
	__u32 inside; /* it was made in the cgroup */
};

/* Tells before it sets: what could not be told is visited again. */
static __always_inline void override(struct seq_file *seq, void *sk, struct vif_moved *m)
{
	struct vif_socket *s = bpf_sk_storage_get(&vif_sockets, sk, NULL, m->inside ? 0 : BPF_SK_STORAGE_GET_F_CREATE);

	/* one that was made in the cgroup needs none, unless it has another */
	if (!s || s->override == vif_home || (m->inside && !s->override))
		return;
	if (bpf_seq_write(seq, m, sizeof(*m)))
		return;
	s->override = vif_home;
}

static __always_inline __u32 inside(struct sock *sk)
{
	if (!__builtin_preserve_field_info(sk->sk_cgrp_data.cgroup, 2 /* BPF_FIELD_EXISTS */))
		return 0;
	return sk->sk_cgrp_data.cgroup->kn->id == vif_home;
}

SEC("iter/task_file")
int vif_files(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct vif_moved m = {};
	struct request_sock *req;
	struct tcp_sock *tcp;
	struct socket *so;
	struct sock *sk;
	__u32 one = 1;
	__u64 at;

	if (!task || !file)
		return 0;
	m.tgid = task->tgid;
	if (!bpf_map_lookup_elem(&vif_tasks, &m.tgid))
		return 0;
	so = bpf_sock_from_file(file);
	if (!so)
		return 0;
	sk = so->sk;
	if (!sk)
		return 0;
	switch (sk->__sk_common.skc_family) {
	case AF_INET:
	case AF_INET6:
	case AF_PACKET:
		break;
	default: /* goes to no interface */
		return 0;
	}
	m.inode = file->f_inode->i_ino;
	m.inside = inside(sk);
	override(ctx->meta->seq, sk, &m);
	if (sk->sk_protocol == IPPROTO_MPTCP) {
		at = (__u64)so;
		bpf_map_update_elem(&vif_behind, &at, &one, 0);
		return 0;
	}
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp || sk->__sk_common.skc_state != TCP_LISTEN)
		return 0;
	req = tcp->inet_conn.icsk_accept_queue.rskq_accept_head;
	for (int i = 0; i < MAX_QUEUE && req; i++) {
		at = (__u64)req->sk;
		bpf_map_update_elem(&vif_behind, &at, &one, 0);
		req = req->dl_next;
	}
	return 0;
}

/* Comes after vif_files. */
SEC("iter/tcp")
int vif_behind_files(struct bpf_iter__tcp *ctx)
{
	struct sock_common *any = ctx->sk_common;
	struct vif_moved m = {};
	struct tcp_sock *tcp;
	struct sock *sk;
	__u64 at;

	if (!any)
		return 0;
	tcp = bpf_skc_to_tcp_sock(any);
	if (!tcp)
		return 0;
	sk = (struct sock *)tcp;
	at = (__u64)sk;
	if (!bpf_map_lookup_elem(&vif_behind, &at)) {
		at = (__u64)sk->sk_socket;
		if (!at || !bpf_map_lookup_elem(&vif_behind, &at))
			return 0;
	}
	m.inside = inside(sk);
	override(ctx->meta->seq, tcp, &m);
	return 0;
}

char _license[] SEC("license") = "Dual MIT/GPL";
