//go:build ignore

/* SPDX-License-Identifier: MIT */
/*
 * Gives open sockets an override, see socket.h: those of some processes that of a
 * cgroup, or all that bound processes have and that are bound by nothing that of
 * their process.
 */
#include "bpf.h"
#include "kernel.h"
#include "socket.h"
#include "bound.h"

#define AF_INET 2
#define AF_INET6 10
#define AF_PACKET 17
#define IPPROTO_MPTCP 262
#define TCP_LISTEN 10
#define MAX_QUEUE 4096 /* net.core.somaxconn as it comes */

/* The processes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __u32);
} vif_tasks SEC(".maps");

/*
 * By their addresses, with their override: connections that wait to be accepted, and
 * sockets of MPTCP, whose connections are sockets of their own. No descriptor leads
 * to either.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u64);
} vif_behind SEC(".maps");

volatile const __u64 vif_home = 0; /* the cgroup's id; 0: every process' own binding */

/* What is told of a socket that got the override, or should have got it. */
struct vif_moved {
	__u64 inode; /* 0: there is no file */
	__u32 tgid;
	__u16 inside; /* it was made in the cgroup */
	__u16 failed; /* FULL, MANY */
};

#define FULL 1 /* the socket has no memory left for it */
#define MANY 2 /* more wait there than are looked at */

static __always_inline int inside(struct sock *sk)
{
	if (!__builtin_preserve_field_info(sk->sk_cgrp_data.cgroup, 2 /* BPF_FIELD_EXISTS */))
		return 0;
	return sk->sk_cgrp_data.cgroup->kn->id == vif_home;
}

/* Whether a socket is bound already, by itself or by an override. */
static __always_inline int claimed(struct sock *sk, struct vif_socket *s)
{
	__u64 id;
	__u32 user;

	if (bound(sk->sk_cgrp_data.cgroup, sk->sk_uid.val))
		return 1;
	if (!s || !s->override)
		return 0;
	if (s->override & VIF_USER) {
		user = s->override;
		return !!bpf_map_lookup_elem(&vif_users, &user);
	}
	id = s->override;
	return !!bpf_map_lookup_elem(&vif_cgroups, &id);
}

/* Tells before it sets: what could not be told is visited again. */
static __always_inline void override(struct seq_file *seq, struct sock *sk, void *same, __u64 to, struct vif_moved *m)
{
	struct vif_socket *s = bpf_sk_storage_get(&vif_sockets, same, NULL, 0);

	if (vif_home) {
		/* one that was made in the cgroup needs none, unless it has another */
		m->inside = inside(sk);
		if (m->inside && (!s || !s->override))
			return;
	} else if (claimed(sk, s)) {
		return;
	}
	if (s && s->override == to)
		return;
	if (!s) {
		s = bpf_sk_storage_get(&vif_sockets, same, NULL, BPF_SK_STORAGE_GET_F_CREATE);
		if (!s)
			m->failed = FULL;
	}
	if (!bpf_seq_write(seq, m, sizeof(*m)) && s)
		s->override = to;
}

SEC("iter/task_file")
int vif_files(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	__u64 at, to = vif_home;
	struct vif_moved m = {};
	struct request_sock *req;
	struct tcp_sock *tcp;
	struct socket *so;
	struct sock *sk;

	if (!task || !file)
		return 0;
	m.tgid = task->tgid;
	if (to && !bpf_map_lookup_elem(&vif_tasks, &m.tgid))
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
	if (!to)
		to = bound(task->cgroups->dfl_cgrp, task->cred->fsuid.val);
	if (!to)
		return 0;
	m.inode = file->f_inode->i_ino;
	override(ctx->meta->seq, sk, sk, to, &m);
	m.inside = 0;
	m.failed = MANY;
	if (sk->sk_protocol == IPPROTO_MPTCP) {
		at = (__u64)so;
		if (bpf_map_update_elem(&vif_behind, &at, &to, 0))
			bpf_seq_write(ctx->meta->seq, &m, sizeof(m));
		return 0;
	}
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp || sk->__sk_common.skc_state != TCP_LISTEN)
		return 0;
	req = tcp->inet_conn.icsk_accept_queue.rskq_accept_head;
	for (int i = 0; i < MAX_QUEUE && req; i++) {
		at = (__u64)req->sk;
		if (bpf_map_update_elem(&vif_behind, &at, &to, 0))
			break;
		req = req->dl_next;
	}
	if (req)
		bpf_seq_write(ctx->meta->seq, &m, sizeof(m));
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
	__u64 at, *to;

	if (!any)
		return 0;
	tcp = bpf_skc_to_tcp_sock(any);
	if (!tcp)
		return 0;
	sk = (struct sock *)tcp;
	at = (__u64)sk;
	to = bpf_map_lookup_elem(&vif_behind, &at);
	if (!to) {
		at = (__u64)sk->sk_socket;
		if (!at)
			return 0;
		to = bpf_map_lookup_elem(&vif_behind, &at);
	}
	if (to)
		override(ctx->meta->seq, sk, tcp, *to, &m);
	return 0;
}

char _license[] SEC("license") = "Dual MIT/GPL";
