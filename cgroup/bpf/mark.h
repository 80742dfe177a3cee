/* SPDX-License-Identifier: MIT */
/*
 * The mark of a packet that a bound port of a bridge brought in, made by
 * mark.bpf.c and read by classify.bpf.c: a number of ours in the upper byte. The
 * port's index is in tc_index, and what of it does not fit there, if ever there is
 * such an index, in the lower bits of the mark. The bits between belong to others,
 * who may set them or act on them: 0x2000 to CNI's portmap, 0x4000 and 0x8000 to
 * Kubernetes, 0xff0000 to Tailscale.
 */
#define VIF_MARK 0x71000000u
#define VIF_MARK_MASK 0xff000000u
#define VIF_MARK_INDEX 0x00001fffu
