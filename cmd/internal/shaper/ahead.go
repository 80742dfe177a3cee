package shaper

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/qdisc"
)

// Reading is a policy that is being read while the kernel is asked for its
// state: with ten thousand branches each takes as long as the other.
type Reading struct {
	as     string // the file that records say it came from
	done   chan struct{}
	policy *policy.Policy
	err    error
}

// Read begins to read a policy; "-" is standard input.
func Read(file string) *Reading {
	p := &Reading{as: file, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.policy, p.err = ReadPolicy(file)
	}()
	return p
}

// ReadText reads a policy that is no file, as standard input is none; its mistakes are said to be
// in one of that name.
func ReadText(name, text string) *Reading {
	p := &Reading{as: "-", done: make(chan struct{})}
	p.policy, p.err = policy.Parse(name, strings.NewReader(text), qdisc.Kinds())
	close(p.done)
	return p
}

// Copied is a policy that was read to its end, with its text. What is applied by it will
// have come from the file as, into which the text is copied, with what is laid over that. It is
// an error where something is laid over the file that is not over the other.
func Copied(file, as string) (r *Reading, text []byte, err error) {
	if here, err := policy.Over(file); err != nil {
		return nil, nil, err
	} else if len(here) > 0 {
		a, _ := filepath.EvalSymlinks(file + ".d")
		if b, err := filepath.EvalSymlinks(as + ".d"); err != nil || a != b {
			return nil, nil, fmt.Errorf("%s is laid over %s, and would not be over the copy: put it into %s.d, and take %s.d away", here[0], file, as, file)
		}
	}
	var b bytes.Buffer
	r = &Reading{as: as, done: make(chan struct{})}
	close(r.done)
	r.policy, r.err = readPolicy(file, as, &b)
	return r, b.Bytes(), r.err
}

// Policy is what was read, by a Reading that is done.
func (p *Reading) Policy() *policy.Policy { return p.policy }

// Wait returns the policy when it has been read, or its mistakes.
func (p *Reading) Wait(ctx context.Context) (*policy.Policy, error) {
	select {
	case <-p.done:
		return p.policy, p.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Before returns the policy's mistakes, else err: they are worth knowing even where
// nothing could be applied.
func (p *Reading) Before(ctx context.Context, err error) error {
	if _, bad := p.Wait(ctx); bad != nil {
		return bad
	}
	return err
}

// ahead reads the queues of the interfaces that vifshape shapes. What cannot be
// read now is read again, and the error reported, if the policy has it.
func (m *Machine) ahead(ctx context.Context) map[string]hierarchy.State {
	names, err := m.Store.Interfaces()
	if err != nil {
		return nil
	}
	early := map[string]hierarchy.State{}
	for _, n := range names {
		d, err := tc.Find(m.Conn, n)
		if err != nil {
			continue
		}
		s := hierarchy.State{Device: n}
		if d.Read(ctx, &s) == nil {
			early[n] = s
		}
	}
	return early
}

// readAhead is a part whose state was read already: the first Read gives that.
type readAhead struct {
	*tc.Device
	state *hierarchy.State
}

func (r *readAhead) Read(ctx context.Context, s *hierarchy.State) error {
	if r.state == nil {
		return r.Device.Read(ctx, s)
	}
	s.Set(r.state.On(r.Port()))
	r.state = nil
	return nil
}
