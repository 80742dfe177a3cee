package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/web"
	"github.com/vifshape/vifshape/cmd/internal/words"
)

func newWebCommand(e *env) *cobra.Command {
	listen := ""
	c := &cobra.Command{
		Use:   "web",
		Short: "Show a browser what every branch does",
		Long: `Web stays and serves one page: the tree with what goes through it now, and for the branch
that is chosen a graph of its rate below the ceiling that it can reach, the delay of its queue,
what was dropped or marked, and the sentence of "vifshape explain". A policy that is pasted in
gives its plan. It changes nothing. The page is a part of this program and asks nobody else for
anything.

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

The last quarter of an hour is kept in memory, every second while somebody has the page open and
else every five; where that takes more than 25 MB it gets the coarser the older it is. 16 pages
may be open at once. Keys: arrows, Home, End and the page keys move in the tree, / searches.

It takes no privileges at a port. Without root the connections of programs are not seen, and
the plan leaves bindings out.

SIGNALS
  TERM, INT  the end, with exit status 0

EXIT STATUS
  0   ended by a signal
  1   an error
  64  wrong flags or arguments`,
		Args: args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGTERM, os.Interrupt)
			defer stop()
			return e.web(ctx, listen)
		},
	}
	c.Flags().StringVar(&listen, "listen", "", listenHelp)
	return c
}

func (e *env) web(ctx context.Context, where string) error {
	s := web.New(web.Config{RunDir: e.runDir, Version: readVersion().Version, Warn: func(text string) { e.warnf("%s", text) }, Plan: e.planForPage})
	at, err := e.listeners(where, (*record.Store).WebSocketFile, 0o600) // it sees what root sees
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
	debug.SetGCPercent(100) // it stays
	return s.Serve(ctx, at)
}

// planForPage is what the command plan prints of a policy.
func (e *env) planForPage(ctx context.Context, text string) web.Answer {
	var out strings.Builder
	w := words.NewTerminal(&out)
	p := &env{stdout: w, stderr: w, runDir: e.runDir}
	err := p.planOf(ctx, shaper.ReadText("policy", text), planOptions{})
	wrong := err != nil && !errors.As(err, new(codeError))
	if wrong {
		p.report(err)
	}
	return web.Answer{Text: out.String(), Wrong: wrong}
}
