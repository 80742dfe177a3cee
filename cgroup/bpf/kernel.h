/* SPDX-License-Identifier: MIT */
/*
 * The kernel's own types, as far as the programs read them. The loader looks up
 * where each field is in the running kernel, by the description that it has of
 * them (BTF).
 */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct kernfs_node {
	__u64 id;
};
struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
};
struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
};
struct css_set {
	struct cgroup *dfl_cgrp; /* of version 2 */
};
typedef struct {
	__u32 val;
} kuid_t;
struct cred {
	kuid_t fsuid;
};
struct task_struct {
	unsigned int flags;
	int tgid;
	const struct cred *cred;
	struct css_set *cgroups;
};
struct sock_cgroup_data {
	struct cgroup *cgroup; /* since 5.15 */
};
struct sock_common {
	unsigned short skc_family;
	volatile unsigned char skc_state;
};
typedef struct {
	int owned;
} socket_lock_t;
struct sock {
	struct sock_common __sk_common;
	socket_lock_t sk_lock;
	struct socket *sk_socket;
	struct sock_cgroup_data sk_cgrp_data;
	__u16 sk_protocol;
	kuid_t sk_uid;
};
struct inode {
	unsigned long i_ino;
};
struct file {
	struct inode *f_inode;
};
struct socket {
	struct file *file;
	struct sock *sk;
};
struct request_sock {
	struct request_sock *dl_next;
	struct sock *sk;
};
struct request_sock_queue {
	struct request_sock *rskq_accept_head;
};
struct inet_sock {
	struct sock sk;
};
struct inet_connection_sock {
	struct inet_sock icsk_inet;
	struct request_sock_queue icsk_accept_queue;
};
struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 snd_nxt;
};
struct bpf_iter_meta {
	struct seq_file *seq;
};
struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};
struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};
#pragma clang attribute pop
