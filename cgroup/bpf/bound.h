/* SPDX-License-Identifier: MIT */
/*
 * What is bound on one interface, and to which class, and what is known of its sockets.
 * Others than classify.bpf.c use its maps in place of their own.
 */
#include "class.h"

#define MAX_LEVEL 31

/* struct vif_socket is in socket.h. BPF_F_CLONE: accepted sockets start with what is known of their listener. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct vif_socket);
} vif_sockets SEC(".maps");

struct vif_binding {
	__u32 class, level;
};

/* Bound cgroups by the id that the kernel gives them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct vif_binding);
} vif_cgroups SEC(".maps");

/* Bound users. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u32);
} vif_users SEC(".maps");

/* The override that stands for the deepest bound cgroup from one upwards, else for the user, 0 for neither. */
static __always_inline __u64 bound(struct cgroup *cgroup, __u32 user)
{
	for (int l = 0; l < MAX_LEVEL && cgroup; l++) {
		struct cgroup_subsys_state *above = cgroup->self.parent;
		__u64 id = cgroup->kn->id;

		if (bpf_map_lookup_elem(&vif_cgroups, &id))
			return id;
		cgroup = above ? above->cgroup : NULL;
	}
	return bpf_map_lookup_elem(&vif_users, &user) ? VIF_USER | user : 0;
}

/* The class that a socket has been given, 0 for none. */
static __always_inline __u32 given(__u64 override)
{
	struct vif_binding *b;
	__u32 user, *class;

	if (override & VIF_USER) {
		user = override;
		class = bpf_map_lookup_elem(&vif_users, &user);
		return class ? *class : 0;
	}
	b = bpf_map_lookup_elem(&vif_cgroups, &override);
	return b ? b->class : 0;
}
