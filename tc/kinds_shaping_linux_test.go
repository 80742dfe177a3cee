package tc_test

import "slices"

// fqCases, cakeCases and netemCases are contract cases, see kindCases.
func fqCases() []kindCase {
	return []kindCase{
		{kind: "fq"},
		{kind: "fq", params: []string{"limit=500", "flow_limit=50", "buckets=256", `quantum="3000b"`, `initial_quantum="9000b"`, `maxrate="5mbit"`,
			`low_rate_threshold="800kbit"`, "pacing=false", `refill_delay="100ms"`, "orphan_mask=255"}},
		{kind: "fq", params: []string{`ce_threshold="4ms"`, `timer_slack="20us"`, `horizon="2s"`, "horizon_drop=false", `maxrate="34gbit"`}},
		{kind: "fq"},
		// What tc 6.1 does not know.
		{kind: "fq", params: []string{`priomap="0 1 2 0 1 2 0 1 2 0 1 2 0 1 2 0"`, `weights="300000 200000 100000"`}, since: "6.7", rough: true},
		{kind: "fq", params: []string{`weights="16384 16385 2097151"`}, since: "6.7", rough: true},
		{kind: "fq", params: []string{`offload_horizon="0s"`}, rough: true}, // no card of a test machine takes more
	}
}

func cakeCases() []kindCase {
	return []kindCase{
		{kind: "cake"},
		{kind: "cake", params: []string{`bandwidth="5mbit"`, `rtt="metro"`, `diffserv="diffserv4"`, `flowmode="dual-srchost"`, "nat=true", "wash=true", `ack-filter="ack-filter"`,
			"split-gso=false", "overhead=-4", `mpu="64b"`, `atm="ptm"`, `memlimit="4mib"`, "ingress=true", "fwmark=240"}},
		{kind: "cake", params: []string{"autorate-ingress=true", `rtt="77ms"`, `diffserv="precedence"`, `flowmode="flowblind"`}, drifts: true, anew: true},
		{kind: "cake", params: []string{`bandwidth="100gbit"`, "raw=true", "overhead=40", `atm="atm"`, `diffserv="besteffort"`, `ack-filter="ack-filter-aggressive"`}},
		{kind: "cake", params: []string{"overhead=0", `diffserv="diffserv8"`, `flowmode="hosts"`}},
		{kind: "cake"},
	}
}

func netemCases() []kindCase {
	const netemSeed = 12 // bytes at the end: the seed that Linux 6.6 draws and shows
	return []kindCase{
		{kind: "netem", chance: netemSeed},
		{kind: "netem", params: []string{"limit=500", `delay="20ms"`, `jitter="8ms"`, `delay_correlation="25%"`, `loss="1%"`, `loss_correlation="0.3%"`, "ecn=true",
			`duplicate="0.1%"`, `duplicate_correlation="10%"`, `corrupt="0.02%"`, `corrupt_correlation="5%"`, `reorder="25%"`, `reorder_correlation="50%"`, "gap=5"}, chance: netemSeed},
		{kind: "netem", params: []string{`delay="20ms"`, `jitter="8ms"`, `loss_model="gemodel"`, `p="1%"`, `r="10%"`, `1-h="70%"`, `1-k="0.1%"`}, chance: netemSeed},
		{kind: "netem", params: []string{`loss_model="gemodel"`, `p="1%"`}, chance: netemSeed},
		{kind: "netem", params: []string{`loss_model="state"`, `p13="1%"`, `p31="80%"`, `p32="5%"`, `p23="90%"`, `p14="0.5%"`, "ecn=true"}, chance: netemSeed},
		{kind: "netem", params: []string{`loss_model="state"`, `p13="1%"`}, chance: netemSeed},
		{kind: "netem", params: []string{`rate="5mbit"`, "packetoverhead=-20", "cellsize=48", "celloverhead=5"}, chance: netemSeed},
		{kind: "netem", params: []string{`rate="40gbit"`, `slot_min="5ms"`, `slot_max="9ms"`, "slot_packets=7", `slot_bytes="9kb"`}, chance: netemSeed},
		{kind: "netem", params: []string{`slot_min="800us"`}, chance: netemSeed},
		{kind: "netem", params: []string{`rate="1mbit"`}, chance: netemSeed},
		// tc 6.1 has whole microseconds and no mark of the distribution.
		{kind: "netem", params: []string{`delay="1234567ns"`, `jitter="500us"`, `distribution="normal"`}, rough: true, chance: netemSeed},
		{kind: "netem", params: []string{`delay="20ms"`, `jitter="8ms"`, `distribution="paretonormal"`}, rough: true, chance: netemSeed},
		{kind: "netem", params: []string{`delay="20ms"`, `jitter="8ms"`, `distribution="uniform"`}, anew: true, chance: netemSeed},
		{kind: "netem", params: []string{`slot_distribution="pareto"`, `slot_delay="5ms"`, `slot_jitter="1ms"`, "slot_packets=7"}, rough: true, chance: netemSeed},
		{kind: "netem", params: []string{`loss="1%"`, "seed=4711"}, since: "6.6", rough: true, chance: netemSeed},
		{kind: "netem", anew: true, chance: netemSeed},
	}
}

func tbfCases() []kindCase {
	return []kindCase{
		{kind: "tbf", params: []string{`rate="40gbit"`, `burst="10mb"`, `limit="20mb"`, `peakrate="50gbit"`, `mtu="1mb"`}, rough: true},
		{kind: "tbf", params: []string{`rate="40gbit"`, `limit="3gb"`}, rough: true},
		{kind: "tbf", params: []string{`rate="8mbit"`}, rough: true},
	}
}

func shapingCases() []kindCase {
	return slices.Concat(fqCases(), cakeCases(), netemCases(), tbfCases())
}
