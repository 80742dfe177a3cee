/* SPDX-License-Identifier: MIT */
/*
 * What is known of a socket, shared by the programs of an interface.
 *
 * Cached is the generation in the upper half and the class in the lower: one word,
 * so that another processor sees both or neither. Override, when it isn't 0, is
 * the id of the cgroup whose binding the socket goes by instead of its own's, or
 * VIF_USER and the number of the user; who sets it for another process begins a new
 * generation afterwards.
 *
 * Accepted is set for listeners whose answers were seen, and so for the connections
 * that are accepted from them. Of these, cgroup and user are those of the process
 * that sent last, as of that generation.
 */
struct vif_socket {
	__u64 cached, override;
	__u64 cgroup;
	__u32 user, generation;
	__u32 accepted, unused;
};

#define VIF_USER (1ull << 63)
