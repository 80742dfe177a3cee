package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/web"
	"github.com/vifshape/vifshape/cmd/internal/words"
)

type webOptions struct {
	listen  string
	write   bool
	confirm time.Duration
}

func newWebCommand(e *env) *cobra.Command {
	var o webOptions
	c := &cobra.Command{
		Use:   "web",
		Short: "Show a browser what every branch does",
		Long: `Web stays and serves one page: the tree with what goes through it now, and for the branch
that is chosen a graph of its rate below the ceiling that it can reach, the delay of its queue,
what was dropped or marked, and the sentence of "vifshape explain". A policy that is pasted in
gives its plan. Without --write it changes nothing. The page is a part of this program and asks
nobody else for anything.

It listens where --listen says, else at sockets that systemd hands over, else at the socket
web.sock in the run directory, which takes root and is for root. From another machine, and in
a browser that cannot open a socket file, by ssh:

  vifshape web
  ssh -N -L 8719:/run/vifshape/web.sock root@router      then http://localhost:8719

Whoever uses the machine on which ssh runs gets in by that port while it does.

At a port it lets in who comes by the link that it prints, which has a token in it that is
another one with each start; the browser has a cookie from then on:

  vifshape web --listen 127.0.0.1:8719

It answers this machine alone, and requests that name it localhost, 127.0.0.1 or [::1]. Other
users of this machine cannot read the cookie, but a browser sends it to what listens at other
ports of 127.0.0.1 too: a socket file is better where these are not to be trusted.

With --write, which takes root, the page may apply the policy whose plan it has shown, as
"vifshape apply --confirm 60s -" does: what was there before comes back after that time, also
where the policy has cut off the page, unless somebody presses Keep or types "vifshape confirm".
Where the plan has become another one since it was shown, nothing is changed. To be let in is not
enough for it: it takes the write code that is printed below the address, another one with each
start, which the page asks for, sends with each change, and knows until it is left or loaded again.
After ten wrong codes in a row nothing is written until the next start. What is kept is in force
until the machine is started again; for good, write it into a file and "vifshape enable" that.

The last quarter of an hour is kept in memory, every second while somebody has the page open and
else every five; where that takes more than 25 MB it gets the coarser the older it is. 16 pages
may be open at once. Keys: arrows, Home, End and the page keys move in the tree, / searches.

It takes no privileges at a port, without --write. Without root the connections of programs are
not seen, and the plan leaves bindings out.

SIGNALS
  TERM, INT  the end, with exit status 0

EXIT STATUS
  0   ended by a signal
  1   an error
  5   --write takes root
  64  wrong flags or arguments`,
		Args: args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			if c.Flags().Changed("confirm") && !o.write {
				return usagef("--confirm is for what the page applies: write --write, too")
			}
			if err := checkConfirm(o.confirm); err != nil {
				return err
			}
			if o.write && os.Geteuid() != 0 {
				return rightsError("--write: only root can change interfaces; without it the page shows what there is")
			}
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGTERM, os.Interrupt)
			defer stop()
			return e.web(ctx, o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.listen, "listen", "", listenHelp)
	f.BoolVar(&o.write, "write", false, "let the page apply policies, for who has the code that is printed")
	f.DurationVar(&o.confirm, "confirm", time.Minute, "with --write: go back after `TIME` from what nobody keeps")
	return c
}

func (e *env) web(ctx context.Context, o webOptions) error {
	cfg := web.Config{RunDir: e.runDir, Version: readVersion().Version, Warn: func(text string) { e.warnf("%s", text) }, Plan: e.planForPage}
	if o.write {
		cfg.Write = &web.Writing{Confirm: o.confirm, Apply: func(ctx context.Context, text, plan string) web.Answer {
			return e.applyForPage(ctx, text, plan, o.confirm)
		}, Keep: e.keepForPage, GoBack: e.goBackForPage}
	}
	s := web.New(cfg)
	at, err := e.listeners(o.listen, (*record.Store).WebSocketFile, 0o600) // it sees what root sees
	if err != nil {
		return err
	}
	for _, l := range at {
		if link, ok := s.Link(l); ok {
			e.printf("%s\n", link)
		} else {
			e.printf("unix:%v\n", l.Addr())
		}
	}
	if o.write {
		e.printf("write code: %s\n", s.Code())
	}
	debug.SetGCPercent(100) // it stays
	return s.Serve(ctx, at)
}

// forPage is what a command prints, as the page shows it.
func (e *env) forPage(command func(*env) error) web.Answer {
	var out strings.Builder
	w := words.NewTerminal(&out)
	p := &env{stdout: w, stderr: w, runDir: e.runDir}
	err := command(p)
	wrong := err != nil && !errors.As(err, new(codeError))
	if wrong {
		p.report(err)
	}
	return web.Answer{Text: out.String(), Wrong: wrong}
}

// planForPage is what the command plan prints of a policy.
func (e *env) planForPage(ctx context.Context, text string) web.Answer {
	plan := ""
	a := e.forPage(func(p *env) error {
		return p.planOf(ctx, fromPage(text), planOptions{shown: func(c *shaper.Changes) (err error) {
			if !c.Empty() {
				plan, err = digest(text, c)
			}
			return err
		}})
	})
	a.Plan = plan
	return a
}

// applyForPage is what the command apply prints of a policy, if it still has the plan that was
// shown.
func (e *env) applyForPage(ctx context.Context, text, plan string, confirm time.Duration) web.Answer {
	return e.forPage(func(p *env) error {
		return p.applyOf(ctx, fromPage(text), "web", applyOptions{confirm: confirm, agreed: func(c *shaper.Changes) error {
			is, err := digest(text, c)
			if err == nil && is != plan {
				err = otherPlanError{}
			}
			return err
		}})
	})
}

// keepForPage and goBackForPage are what confirm and rollback print, of one apply that waits.
func (e *env) keepForPage(ctx context.Context, id string) web.Answer {
	return e.forPage(func(p *env) error { return p.confirm(ctx, id) })
}

func (e *env) goBackForPage(ctx context.Context, id string) web.Answer {
	return e.forPage(func(p *env) error {
		return p.rollback(false, func(m *shaper.Machine) (*shaper.Changes, error) { return m.Revoke(ctx, id) })
	})
}

func fromPage(text string) *shaper.Reading { return shaper.ReadText("policy", text) }

// digest tells apart what policies come to: their text, and every value that changes.
func digest(text string, c *shaper.Changes) (string, error) {
	plan := planAsJSON(c.Plans())
	for _, no := range c.Absent {
		plan.Missing = append(plan.Missing, no.Name)
	}
	b, err := json.Marshal([]any{text, plan})
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), err
}

// otherPlanError says that a policy comes to something else than what was agreed to.
type otherPlanError struct{}

func (otherPlanError) Error() string {
	return "this is not the plan that was shown: the policy or the kernel's state has become another one since, and nothing was changed"
}

// Remedy is the way on.
func (otherPlanError) Remedy() string { return "show the plan again, and apply that" }
