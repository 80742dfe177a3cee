//go:build ignore

/* SPDX-License-Identifier: MIT */
/*
 * Tells what the classifier knows of sockets, see socket.h, of those that have a
 * file.
 */
#include "bpf.h"
#include "kernel.h"
#include "socket.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	void *map;
	struct sock *sk;
	struct vif_socket *value;
};
#pragma clang attribute pop

struct vif_known {
	__u64 inode, cached, override;
};

SEC("iter/bpf_sk_storage_map")
int vif_known(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct vif_socket *value = ctx->value;
	struct vif_known k = {};
	struct sock *sk = ctx->sk;
	struct socket *so;
	struct file *file;

	if (!sk || !value)
		return 0;
	so = sk->sk_socket;
	if (!so)
		return 0;
	file = so->file;
	if (!file)
		return 0;
	k.inode = file->f_inode->i_ino;
	k.cached = *(volatile __u64 *)&value->cached;
	k.override = value->override;
	bpf_seq_write(ctx->meta->seq, &k, sizeof(k));
	return 0;
}

char _license[] SEC("license") = "Dual MIT/GPL";
