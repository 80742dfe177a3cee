// Package client asks the agent of a network namespace for what takes root: to be put into
// a branch, and to divide one that is delegated to the user; and tells it, as root, of pods. The agent, `vifshape agent`,
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
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
)

// Version is the version of the protocol. An agent answers requests of its own alone.
const Version = 1

// MaxMessage bounds a request in bytes, the end of the line included, MaxReply a reply. A thousand
// pods come in several requests.
const (
	MaxMessage = 64 << 10
	MaxReply   = 4 << 20
)

// Op is what can be asked of the agent.
type Op string

// The operations.
const (
	Enter  Op = "enter"  // put the calling process into the branch
	Add    Op = "add"    // make the branch
	Remove Op = "remove" // take away a branch that was added
	Pods   Op = "pods"   // note pods that run, and others that have ended; it takes root
)

// Request is what is asked for. Run and Gone are for [Pods], all else but Op and Path for [Add]: as
// in a policy, and not written where it is zero.
type Request struct {
	Version int              `json:"version"` // set by [Client.Do]
	Op      Op               `json:"op"`
	Path    hierarchy.Path   `json:"path,omitempty"` // of the branch
	Rate    hierarchy.Amount `json:"rate,omitzero"`
	Ceil    hierarchy.Amount `json:"ceil,omitzero"`
	Prio    *uint8           `json:"prio,omitempty"`
	Qdisc   string           `json:"qdisc,omitempty"`  // a kind
	Ingress hierarchy.Amount `json:"ingress,omitzero"` // the rate for receiving
	Run     []amend.Pod      `json:"run,omitempty"`    // new ones, or such as are told of anew
	Gone    []string         `json:"gone,omitempty"`   // ids of pods
}

// Place is where a pod is, once what it sends goes there.
type Place struct {
	ID       string           `json:"id"`
	Branches []hierarchy.Path `json:"branches,omitempty"` // one for each shaped interface that has one for it; none: it is in the rest
	Remarks  []string         `json:"remarks,omitempty"`  // what is not as its author would like
}

// Reply is the agent's answer.
type Reply struct {
	Version int      `json:"version"`
	Code    int      `json:"code"` // an exit status of vifshape; 0: done
	Error   string   `json:"error,omitempty"`
	Hints   []string `json:"hints,omitempty"`  // ways on from the error
	Places  []Place  `json:"places,omitempty"` // to [Pods]: of those that run, of all that are known where none was named
}

// Codes of an agent that has begun nothing.
const (
	Busy       = 4  // it has more to do than it can take, or waits for another writer
	BadRequest = 64 // what it was asked is nothing that can be
)

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
	Path   hierarchy.Path // that was asked about; empty for pods
	Socket string
}

// Error says who could have helped.
func (e *NoAgentError) Error() string {
	if e.Path == "" {
		return fmt.Sprintf("no agent of vifshape listens at %s", e.Socket)
	}
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
	_, err := c.do(ctx, q)
	return err
}

// Pods tells the agent of pods, as root, and returns where those are that run, all that the agent
// knows where none is given. Errors are those of [Client.Do]; what did not fail is done then.
func (c Client) Pods(ctx context.Context, run []amend.Pod, gone []string) ([]Place, error) {
	r, err := c.do(ctx, Request{Op: Pods, Run: run, Gone: gone})
	return r.Places, err
}

func (c Client) do(ctx context.Context, q Request) (Reply, error) {
	q.Version = Version
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last error
	for {
		r, err := c.once(ctx, q)
		if late := (*net.OpError)(nil); last != nil && errors.As(err, &late) && late.Op == "dial" && late.Timeout() {
			return r, last // the time was over before it was asked again
		}
		if busy := (*Error)(nil); !errors.As(err, &busy) || busy.Code != Busy {
			return r, err
		}
		last = err
		select {
		case <-ctx.Done():
			return r, err
		case <-time.After(retry):
		}
	}
}

// Listens says whether there is an agent at the socket.
func (c Client) Listens() bool {
	conn, err := net.DialTimeout("unix", c.Socket, retry)
	if err != nil {
		return errors.Is(err, syscall.EAGAIN) // it has more to do than it can take
	}
	_ = conn.Close() // it was asked nothing
	return true
}

func (c Client) once(ctx context.Context, q Request) (r Reply, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", c.Socket)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return r, &NoAgentError{q.Path, c.Socket}
	}
	if errors.Is(err, syscall.EAGAIN) { // as many wait as can (unix_stream_connect, net/unix/af_unix.c, v6.12)
		return r, &Error{Code: Busy, Text: "the agent has more requests than it can take: try again later"}
	}
	if err != nil {
		return r, fmt.Errorf("ask the agent: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	b, err := json.Marshal(q)
	if err == nil {
		_, err = conn.Write(append(b, '\n'))
	}
	if err == nil || errors.Is(err, syscall.EPIPE) { // it may have answered already that it is busy
		b, err = bufio.NewReader(io.LimitReader(conn, MaxReply)).ReadBytes('\n')
	}
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return r, fmt.Errorf("the agent did not answer in time; it may still do it")
	case ctx.Err() != nil:
		return r, ctx.Err()
	case err != nil:
		return r, fmt.Errorf("the agent did not answer: %w", err)
	case r.Version != Version:
		return r, fmt.Errorf("the agent is of another version of vifshape (%d, this one has %d): restart it", r.Version, Version)
	case r.Code != 0:
		return r, &Error{r.Code, r.Error, r.Hints}
	}
	return r, nil
}
