/* SPDX-License-Identifier: MIT */
/*
 * The head of the set. Version counts the layouts of these maps and stays first.
 * Generation is what the sockets' cached classes are held against; it is never 0,
 * because that is what a new socket's cache holds. Rest is the default class. Bit
 * l of levels is set when a cgroup l steps below the root may be bound.
 */
struct vif_config {
	__u32 version, generation, rest, levels;
};
