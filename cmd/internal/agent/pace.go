package agent

import "time"

// pace keeps looks at an interface from taking all of the time, and the lock with it, however
// fast somebody makes and removes cgroups: half of it, after a quarter of a second of as many looks as
// there are. The zero value has not begun.
type pace struct {
	at   time.Time     // when it was worked out last
	owes time.Duration // that looks took, beyond their half
}

const (
	// mostOwed is how long looks may take one after the other before they wait.
	mostOwed = 250 * time.Millisecond
	// leastLook is what a look counts as at least: who waits for the lock looks for it as often.
	leastLook = agentPause
)

// looked counts a look that took so long and has just ended.
func (p *pace) looked(now time.Time, took time.Duration) {
	p.pay(now.Add(-took))
	p.at, p.owes = now, p.owes+max(took, leastLook)
}

// wait is how long the next look has to wait.
func (p *pace) wait(now time.Time) time.Duration {
	p.pay(now)
	return max(0, p.owes-mostOwed)
}

// pay has time that passes without a look count.
func (p *pace) pay(now time.Time) {
	if d := now.Sub(p.at); d > 0 {
		p.at, p.owes = now, max(0, p.owes-d)
	}
}
