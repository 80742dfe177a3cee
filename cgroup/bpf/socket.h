/* SPDX-License-Identifier: MIT */
/*
 * What is known of a socket, shared by classify.bpf.c and sockets.bpf.c.
 *
 * Cached is the generation in the upper half and the class in the lower: one word,
 * so that another processor sees both or neither. Override, when it isn't 0, is
 * the id of the cgroup whose binding the socket goes by instead of its own's;
 * whoever sets it begins a new generation afterwards.
 */
struct vif_socket {
	__u64 cached, override;
};
