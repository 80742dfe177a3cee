// Package client asks the agent of a network namespace for what takes root: to be put into
// a branch, and to divide one that is delegated to the user. The agent, `vifshape agent`,
// listens at a socket in the run directory and answers one request a connection, each a
// line of JSON both ways. The kernel tells it who asks; nothing that a request says of that
// would be believed.
//
// A [Client] has no state and is for any number of goroutines.
package client

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

	"github.com/vifshape/vifshape/hierarchy"
)

// Version is the version of the protocol. An agent answers requests of its own alone.
const Version = 1

// MaxMessage bounds a request and a reply in bytes, the end of the line included.
const MaxMessage = 64 << 10

// Op is what can be asked of the agent.
type Op string

// The operations.
const (
	Enter  Op = "enter"  // put the calling process into the branch
	Add    Op = "add"    // make the branch
	Remove Op = "remove" // take away a branch that was added
)

// Request is what is asked for. All but Op and Path is for [Add]: as in a policy, and not
// written where it is zero.
type Request struct {
	Version int              `json:"version"` // set by [Client.Do]
	Op      Op               `json:"op"`
	Path    hierarchy.Path   `json:"path"` // of the branch
	Rate    hierarchy.Amount `json:"rate,omitzero"`
	Ceil    hierarchy.Amount `json:"ceil,omitzero"`
	Prio    *uint8           `json:"prio,omitempty"`
	Qdisc   string           `json:"qdisc,omitempty"`  // a kind
	Ingress hierarchy.Amount `json:"ingress,omitzero"` // the rate for receiving
}

// Reply is the agent's answer.
type Reply struct {
	Version int      `json:"version"`
	Code    int      `json:"code"` // an exit status of vifshape; 0: done
	Error   string   `json:"error,omitempty"`
	Hints   []string `json:"hints,omitempty"` // ways on from the error
}

// Busy is the code of an agent that has more to do than it can take, or waits for another
// writer. It has begun nothing.
const Busy = 4

// Error is an answer that says no.
type Error struct {
	Code  int // of the [Reply]
	Text  string
	Hints []string
}

// Error is what the agent said.
func (e *Error) Error() string { return e.Text }

// NoAgentError says that nobody listens at the socket.
type NoAgentError struct {
	Path hierarchy.Path // that was asked about
}

// Error says who could have helped.
func (e *NoAgentError) Error() string {
	return fmt.Sprintf("%s: only root may do that by itself, and no agent runs that could do it for user %d", e.Path, os.Geteuid())
}

// Client asks one agent.
type Client struct {
	// Socket is the agent's: agent.sock in the run directory, which is /run/vifshape
	// in the machine's own network namespace.
	Socket string
}

const (
	// patience is longer than the agent may take: it waits for other writers itself.
	patience = 30 * time.Second
	// retry is how long to wait before an agent that is busy is asked again.
	retry = 100 * time.Millisecond
)

// Do has the agent do something: nil, an [Error] where it refused, a [NoAgentError]. While
// it has too much to do, which it says at once and has then begun nothing, it is asked
// again: many programs may be started together. It gives up after 30 seconds, or when ctx
// ends; the agent may still do it then.
func (c Client) Do(ctx context.Context, q Request) error {
	q.Version = Version
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := c.once(ctx, q)
		if busy := (*Error)(nil); !errors.As(err, &busy) || busy.Code != Busy {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(retry):
		}
	}
}

// Listens says whether there is an agent at the socket.
func (c Client) Listens() bool {
	conn, err := net.DialTimeout("unix", c.Socket, retry)
	if err != nil {
		return false
	}
	_ = conn.Close() // it was asked nothing
	return true
}

func (c Client) once(ctx context.Context, q Request) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", c.Socket)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return &NoAgentError{q.Path}
	}
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var r Reply
	b, err := json.Marshal(q)
	if err == nil {
		_, err = conn.Write(append(b, '\n'))
	}
	if err == nil || errors.Is(err, syscall.EPIPE) { // it may have answered already that it is busy
		b, err = bufio.NewReader(conn).ReadBytes('\n')
	}
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("the agent did not answer within %v; it may still do it", patience)
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("the agent did not answer: %w", err)
	case r.Version != Version:
		return fmt.Errorf("the agent is of another version of vifshape (%d, this one has %d): restart it", r.Version, Version)
	case r.Code != 0:
		return &Error{r.Code, r.Error, r.Hints}
	}
	return nil
}
