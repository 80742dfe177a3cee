// Package setup writes a first policy for a machine. [Look] finds out what there is: which
// interface leads out and how fast it is, what listens, which containers and users there are.
// [Survey.Policy] writes the policy of that for a [Purpose]: branches that hold by themselves,
// and lines for what was found here that are comments until somebody wants them. [Survey.Measure]
// finds out how much gets through to a host. Nothing is changed. What only root can read is
// left out, and named.
package setup
