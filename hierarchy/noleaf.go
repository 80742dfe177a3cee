package hierarchy

// noLeaf says why a queueing discipline that the kernel may have is no leaf of a
// tree, and what to write instead. Empty: nothing is known about it.
func noLeaf(kind string) (why, hint string) {
	switch kind {
	case "htb", "hfsc", "cbq":
		return "has classes of its own", "the branches below this one are such classes: give it some"
	case "prio", "pfifo_fast":
		return "has bands, which are classes of their own", "give branches a prio, 0 first to 7 last"
	case "drr", "qfq", "ets", "wrr":
		return "has classes of its own, which somebody has to sort packets into", "give branches rates, or take fq_codel or sfq, which make a class of each flow"
	case "gred":
		return "has queues that are set up one by one, and that marks on packets choose", "give each a branch of its own with the kind red"
	case "mq", "mqprio", "multiq", "taprio", "cbs":
		return "is for the queues of a network card and cannot be below a class", "leave it out"
	case "etf":
		return "takes only packets that say when to send them", `kind = "fq" sends by such times, too`
	case "noqueue":
		return "has no queue, and so nothing could wait for its turn", `kind = "pfifo" with limit = 1 comes nearest`
	case "noop", "blackhole":
		return "drops every packet", "to close a branch give it a low ceil"
	case "plug", "teql", "teql0":
		return "waits for somebody to let packets go", "leave it out"
	case "ingress", "clsact":
		return "is a place for filters and has no queue", "leave it out"
	}
	return "", ""
}
