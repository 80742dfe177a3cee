/* SPDX-License-Identifier: MIT */
/* The upper half of the ids of our classes. */
#define MAJOR 0x71fu /* hierarchy.Major */
#define STAYS 0x8000u /* besides, of what has been bound to a rest itself: it is not matched from the branch above */
