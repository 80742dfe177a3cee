package main

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/explain"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

type explainOptions struct {
	of          explain.Subject
	sample      time.Duration
	json, watch bool
}

func newExplainCommand(e *env) *cobra.Command {
	var o explainOptions
	c := &cobra.Command{
		Use:   "explain PATH | PID | BINDING",
		Short: "Say why a branch, or what somebody sends, is slow",
		Long: `Explain looks at the counters of the tree and at the connections of those who send, for
two seconds, and says in one sentence what holds them up, and then by which figures.
It changes nothing.

  vifshape explain eth0/backup           a branch, and all who are in it
  vifshape explain 4711                  a process, wherever it is
  vifshape explain unit:restic.service   what a binding can name

What it tells apart: the branch is at its ceiling; one above is full, and who takes most of
it; others go first by their priority; the line or its driver takes less than the tree's rate;
its own queue holds packets back by itself (netem, tbf, fq, or cake with a bandwidth); the
queue is too short for bursts. Where nothing waits in the tree: the receiver's window is
shut; the send buffer is too small; the program sends no more; the path beyond loses packets,
is narrow or long; ECN tells to slow down. And: sockets that another branch carries, packets
that leave by another interface, a tree that is gone. "not sure" comes with the figures
where they disagree. Of a process or a binding each interface has an answer: first those
by which something goes.

Whose queue it is the counters tell, which everybody may read. Connections, of TCP alone and
in the network namespaces of bound containers too, take root. Of what is received the
sender's end is not here, and so the tree alone is looked at. How long each packet waits
in a branch, "vifshape latency" measures.

EXIT STATUS
  0    done, whatever the answer is
  1    an error, or there is no such branch, process or binding
  5    root is needed for a process or a binding
  64   wrong flags or arguments
  130  interrupted`,
		Args: args(1, 1, "a path, a process number or a binding"),
		RunE: interruptible(func(c *cobra.Command, a []string) (err error) {
			if o.sample < 100*time.Millisecond {
				return usagef("--sample %v is too short to tell: write 100ms or more, as 2s", o.sample)
			}
			if o.of, err = subject(a[0]); err != nil {
				return err
			}
			return e.explain(c.Context(), o)
		}),
	}
	c.Flags().DurationVar(&o.sample, "sample", 2*time.Second, "look for `TIME`")
	c.Flags().BoolVar(&o.watch, "watch", false, "look again and again, until Ctrl-C")
	c.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return c
}

// subject reads what is asked about.
func subject(what string) (s explain.Subject, err error) {
	pid := strings.TrimPrefix(what, "pid:")
	if n, err := strconv.ParseInt(pid, 10, 32); err == nil || pid != what {
		if n <= 0 {
			return s, usagef("%q is no process: write its number, as 4711", what)
		}
		return explain.Subject{PID: int(n)}, nil
	}
	if kind, _, ok := strings.Cut(what, ":"); ok && !strings.Contains(kind, "/") {
		s.Binding, err = bind.Parse(what)
		if err != nil {
			err = usageError{err}
		}
		return s, err
	}
	s.Path, err = parsePath(what)
	return s, err
}

// explainJSON is the stable form of explain.
type explainJSON struct {
	Answers []answerJSON `json:"answers"`
}

// answerJSON is the answer for one interface.
type answerJSON struct {
	Interface string         `json:"interface"`
	Path      hierarchy.Path `json:"path,omitempty"`
	explain.Verdict
	Sends       explain.Port         `json:"sends,omitempty"`
	Receives    explain.Port         `json:"receives,omitempty"`
	Connections []explain.Connection `json:"connections,omitempty"`
}

func (e *env) explain(ctx context.Context, o explainOptions) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	for {
		out := explainJSON{Answers: []answerJSON{}}
		err := e.each(m, o.of.Path, func(iface string) error {
			x, err := explain.Look(ctx, m, iface, o.of, o.sample, explain.Samples)
			if err != nil {
				return err
			}
			out.Answers = append(out.Answers, answerJSON{iface, x.Path, x.Judge(), x.Sends, x.Receives, x.Connections})
			return nil
		})
		switch {
		case err != nil:
			return err
		case len(out.Answers) == 0:
			out.Answers = append(out.Answers, answerJSON{Verdict: explain.Verdict{
				Cause: explain.Unshaped, Sentence: "no interface is shaped by vifshape in this network namespace", Evidence: []string{}}})
		}
		// Whoever is asked about sends by one of several interfaces, mostly.
		slices.SortStableFunc(out.Answers, func(a, b answerJSON) int { return cmp.Compare(a.Past(), b.Past()) })
		if o.json {
			err = e.json(out)
		} else {
			e.writeAnswers(out.Answers)
		}
		if err != nil || !o.watch {
			return err
		}
	}
}

func (e *env) writeAnswers(all []answerJSON) {
	for _, a := range all {
		e.printf("%s\n", a.Sentence)
		for _, line := range a.Evidence {
			e.printf("  %s\n", line)
		}
	}
}
