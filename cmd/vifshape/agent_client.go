package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
)

// agentVersion is the version of what is said over the agent's socket: one line of
// JSON each way, a request and a reply.
const agentVersion = 1

// maxMessage bounds a line, its end included.
const maxMessage = 64 << 10

// What can be asked of the agent.
const (
	opEnter  = "enter"  // put the caller into the branch
	opAdd    = "add"    // make the branch
	opRemove = "remove" // take the branch away
)

type agentRequest struct {
	Version int              `json:"version"`
	Op      string           `json:"op"`
	Path    hierarchy.Path   `json:"path"`
	Rate    hierarchy.Amount `json:"rate,omitzero"`
	Ceil    hierarchy.Amount `json:"ceil,omitzero"`
	Prio    *uint8           `json:"prio,omitempty"`
	Qdisc   string           `json:"qdisc,omitempty"`
}

type agentReply struct {
	Version int      `json:"version"`
	Code    int      `json:"code"` // exit status; 0: done
	Error   string   `json:"error,omitempty"`
	Hints   []string `json:"hints,omitempty"`
}

// agentError is what the agent answered.
type agentError struct {
	code  int
	text  string
	hints []string
}

func (e *agentError) Error() string { return e.text }

// agentPatience is longer than the agent may take: it waits for other writers itself.
const agentPatience = 30 * time.Second

// agentRetry is how long to wait before an agent that is busy is asked again.
const agentRetry = 100 * time.Millisecond

// ask has the agent do something. While it has too much to do, which it says at once
// and has then begun nothing, it is asked again: many programs may be started together.
func ask(m *shaper.Machine, ctx context.Context, q agentRequest) error {
	q.Version = agentVersion
	ctx, cancel := context.WithTimeout(ctx, agentPatience)
	defer cancel()
	for {
		err := askOnce(m, ctx, q)
		if busy := (*agentError)(nil); !errors.As(err, &busy) || busy.code != exitLocked {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(agentRetry):
		}
	}
}

func askOnce(m *shaper.Machine, ctx context.Context, q agentRequest) error {
	c, err := new(net.Dialer).DialContext(ctx, "unix", m.Store.AgentSocketFile())
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return &agentError{exitPrivilege, fmt.Sprintf("%s: only root may do that by itself, and no agent runs that could do it for user %d", q.Path, os.Geteuid()),
			[]string{"run it as root, for example with sudo; or have root start `vifshape agent`, which does it for users to whom the branch is delegated"}}
	}
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	var r agentReply
	b, err := json.Marshal(q)
	if err == nil {
		_, err = c.Write(append(b, '\n'))
	}
	if err == nil || errors.Is(err, syscall.EPIPE) { // it may have answered already that it is busy
		b, err = bufio.NewReader(c).ReadBytes('\n')
	}
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("the agent did not answer within %v; it may still do it", agentPatience)
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("the agent did not answer: %w", err)
	case r.Version != agentVersion:
		return fmt.Errorf("the agent is of another version of vifshape (%d, this one has %d): restart it", r.Version, agentVersion)
	case r.Code != exitOK:
		return &agentError{r.Code, r.Error, r.Hints}
	}
	return nil
}
