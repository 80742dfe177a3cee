//go:build linux

package qdisc

import "math"

// The distributions of netem's delays. The kernel has uniform; for the others it
// is given a table that turns equally likely numbers into deviations from the
// mean, in 1/8192 of the jitter (tabledist, net/sched/sch_netem.c, v6.12).
const (
	distUniform = iota
	distNormal
	distPareto
	distParetoNormal
	distributions
)

func distributionNames() []string {
	return []string{distUniform: "uniform", distNormal: "normal", distPareto: "pareto", distParetoNormal: "paretonormal"}
}

const (
	distScale = 8192 // NETEM_DIST_SCALE of linux/pkt_sched.h
	distSize  = 4096
)

// distTable is the table of a distribution other than uniform, as tc has it: the
// generators of iproute2 (netem/normal.c, pareto.c and paretonormal.c, v6.1.0,
// once of NISTnet), of which the first is worked out here by the inverse function
// and not by going through all values.
func distTable(kind int) []int16 {
	t := make([]int16, distSize)
	for i := range t {
		var v int
		switch kind {
		case distNormal:
			v = distNormalAt(i)
		case distPareto:
			v = distParetoAt(i)
		case distParetoNormal:
			v = (distNormalAt(i) + 3*distParetoAt(i)) / 4
		}
		t[i] = int16(min(max(v, math.MinInt16), math.MaxInt16))
	}
	return t
}

// distNormalAt is the normal distribution's last value, in steps of 0.00005,
// whose share of all, in 1/16384, rounds to 4i.
func distNormalAt(i int) int {
	const steps, shares = 1 / 0.00005, 4 * distSize
	share := (4*float64(i) + 0.5) / shares
	x := math.Sqrt2 * math.Erfinv(2*share-1)
	return int(math.RoundToEven(math.Floor(x*steps) / steps * distScale))
}

// distParetoAt is Pareto's distribution with exponent 3, mean 0 and deviation 1.
func distParetoAt(i int) int {
	v := math.Pow(1-float64(i)/distSize, -1.0/3) - 1.5
	return int(math.RoundToEven(min(v*4/3*distScale, math.MaxInt16)))
}
