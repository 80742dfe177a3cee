package main

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// What benchmarks of cmd/vifshape measure at best, of a pod that is alone on its node, and what
// each other pod there adds.
const (
	start, startOther = 2 * time.Millisecond, 50 * time.Microsecond  // BenchmarkPods: a start; an end takes less
	look, lookOther   = 3 * time.Millisecond, 400 * time.Microsecond // BenchmarkPods: the agent looks at all

	moved = 300 * time.Millisecond // BenchmarkPodsPolicy: an apply that gives 250 pods another branch
)

// What comes to a look: the agent begins it so long after a request (podsPause of the agent), and
// who waits for its end sees it so much later at most (Store.Lock of package record).
const (
	pause = 100 * time.Millisecond
	seen  = 20 * time.Millisecond
)

const (
	nodes = 5000
	full  = 250 // pods on a node
)

// queue is a node in virtual time. The runtime tells of one event after the other
// (Adaptation.RunPodSandbox, pkg/adaptation/adaptation.go, NRI v0.12.5), and each is one request to
// the agent: who comes meanwhile waits in the runtime, where nothing limits that but kubelet's
// patience (runtimeRequestTimeout, two minutes). Images are pulled after that, and hold nothing up
// here (SyncPod of kubelet, kuberuntime_manager.go).
type queue struct {
	slow   time.Duration // how many times as long all takes: the node has other work
	change time.Duration // when a policy moves all pods, 0: never
	free   time.Duration // when the last request is answered
	due    time.Duration // when the agent looks, 0: nothing has changed
	late   int           // answers that come when the plugin waits no more
}

// ask is a request at a time, with as many other pods there, and returns how long its pod waits.
func (q *queue) ask(at time.Duration, pods int) time.Duration {
	others := time.Duration(pods)
	asked := max(at, q.free)
	begin := asked
	if q.due > 0 && q.due <= asked {
		begin = max(begin, max(q.due, q.free)+q.slow*(look+others*lookOther)+seen)
		q.due = 0
	}
	if applied := q.change + q.slow*moved + seen; q.change > 0 && q.change <= begin && begin < applied {
		begin = applied
	}
	q.free = begin + q.slow*(start+others*startOther)
	if q.due == 0 {
		q.due = q.free + pause
	}
	if q.free-asked > patience {
		q.late++
	}
	return q.free - at
}

// churn is two minutes of a full node whose pods live so long, and are replaced at once.
func churn(life time.Duration) func(*queue, *rand.Rand) []time.Duration {
	return func(q *queue, r *rand.Rand) (waits []time.Duration) {
		for at := time.Duration(0); ; {
			at += time.Duration(r.ExpFloat64() * float64(life) / (2 * full)) // to the next start or end
			if at > 2*time.Minute {
				return waits
			}
			if wait := q.ask(at, full-1); r.IntN(2) == 0 {
				waits = append(waits, wait)
			}
		}
	}
}

// boot is a node that comes up. The runtime makes so many sandboxes side by side, half a second
// each, and begins the next one when the agent knows of one.
func boot(beside int) func(*queue, *rand.Rand) []time.Duration {
	sandbox := func(r *rand.Rand) time.Duration { return time.Second/4 + time.Duration(r.Int64N(int64(time.Second/2))) }
	return func(q *queue, r *rand.Rand) (waits []time.Duration) {
		made := make([]time.Duration, beside)
		for i := range made {
			made[i] = sandbox(r)
		}
		for others := range full {
			slices.Sort(made)
			wait := q.ask(made[0], others)
			waits = append(waits, wait)
			made[0] += wait + sandbox(r)
		}
		return waits
	}
}

// rollout is one step of a Deployment that has all pods of the fleet: a quarter of them, as is its
// default, ends and starts anywhere, within one second. The API server takes longer.
func rollout(q *queue, r *rand.Rand) (waits []time.Duration) {
	var at []time.Duration
	for range 2 * full {
		if r.IntN(4) == 0 {
			at = append(at, time.Duration(r.Int64N(int64(time.Second))))
		}
	}
	slices.Sort(at)
	for i, t := range at {
		if wait := q.ask(t, full-1); i%2 == 0 { // every other one is an end
			waits = append(waits, wait)
		}
	}
	return waits
}

// TestQueue holds how long pods on 5,000 nodes wait for the agent, in virtual time, and how many
// begin without it: those are told of again when their first container starts. What it logs is in
// `vifshape help figures`.
func TestQueue(t *testing.T) {
	for _, x := range []struct {
		name         string
		node         func(*queue, *rand.Rand) []time.Duration
		on           queue
		p99, longest time.Duration // at most
		late         int           // at most, of a million pods
	}{
		{"pods live an hour", churn(time.Hour), queue{slow: 1}, 100 * time.Millisecond, 200 * time.Millisecond, 0},
		{"pods live 10 minutes", churn(10 * time.Minute), queue{slow: 1}, 150 * time.Millisecond, 250 * time.Millisecond, 0},
		{"pods live a minute", churn(time.Minute), queue{slow: 1}, 200 * time.Millisecond, 400 * time.Millisecond, 0},
		{"pods live 10 minutes, all nodes 4 times as slow", churn(10 * time.Minute), queue{slow: 4}, time.Second, 2 * time.Second, 0},
		{"pods live 10 minutes, a policy moves all", churn(10 * time.Minute), queue{slow: 1, change: time.Minute}, 200 * time.Millisecond, time.Second, 0},
		{"the same, all nodes 4 times as slow", churn(10 * time.Minute), queue{slow: 4, change: time.Minute}, time.Second, 3 * time.Second, 10_000},
		{"a node boots, 10 pods side by side", boot(10), queue{slow: 1}, 200 * time.Millisecond, 300 * time.Millisecond, 0},
		{"a node boots, all pods at once", boot(full), queue{slow: 1}, 5 * time.Second, 5 * time.Second, 0},
		{"a quarter of all pods is replaced", rollout, queue{slow: 1}, 5 * time.Second, 6 * time.Second, 0},
	} {
		r := rand.New(rand.NewPCG(1, 2))
		var waits []time.Duration
		late := 0
		for range nodes {
			q := x.on
			waits = append(waits, x.node(&q, r)...)
			late += q.late
		}
		slices.Sort(waits)
		n := len(waits)
		p99, longest := waits[n*99/100], waits[n-1]
		t.Logf("%s: of %d pods half wait %.2f s, 99%% no more than %.2f s, none more than %.2f s; %d are late", x.name, n, waits[n/2].Seconds(), p99.Seconds(), longest.Seconds(), late)
		if p99 > x.p99 || longest > x.longest || late > x.late*n/1_000_000 {
			t.Errorf("more than %v, %v or %d of a million", x.p99, x.longest, x.late)
		}
	}
}
