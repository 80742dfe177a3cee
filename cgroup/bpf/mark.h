/* SPDX-License-Identifier: MIT */
/*
 * The mark of a packet that a bound port of a bridge brought in, made by
 * mark.bpf.c and read by classify.bpf.c: the port's index below a number of ours.
 */
#define VIF_MARK 0x71000000u
#define VIF_MARK_INDEX 0x00ffffffu
