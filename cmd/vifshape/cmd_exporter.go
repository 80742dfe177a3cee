package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/exporter"
	"github.com/vifshape/vifshape/cmd/internal/record"
)

type exporterOptions struct{ listen, textfile string }

func newExporterCommand(e *env) *cobra.Command {
	var o exporterOptions
	c := &cobra.Command{
		Use:   "exporter",
		Short: "Tell Prometheus what every branch counts",
		Long: `Exporter stays and answers at /metrics with what each branch of every interface has let
through and dropped, what waits there, and what it may have; with --textfile it writes that
once, for the textfile collector of node_exporter. It takes no privileges, needs no agent,
and looks at the kernel only when it is asked, once for each time.

  vifshape exporter --listen 127.0.0.1:9719
  vifshape exporter --listen unix:/run/vifshape-exporter.sock
  vifshape exporter --textfile /var/lib/prometheus/node-exporter

It listens where --listen says, else at sockets that systemd hands over, else at the socket
exporter.sock in the run directory, which takes root. It answers this machine alone: who
wants to ask from another one puts a reverse proxy before it, with TLS.

A branch is told by its whole path, as in branch="eth0/web/api", with direction="send" or
"receive". Its number of bytes and packets contains those of the branches in it: what goes
through an interface is that of branch="eth0". Only leaves have a queue, and so a backlog
and drops: the drops are the queue's own, with those that it makes while packets wait.

  vifshape_branch_bytes_total, vifshape_branch_packets_total
  vifshape_branch_dropped_packets_total, vifshape_branch_marked_packets_total (by ECN)
  vifshape_branch_overlimits_total
  vifshape_branch_lent_packets_total, vifshape_branch_borrowed_packets_total
  vifshape_branch_backlog_bytes, vifshape_branch_backlog_packets
  vifshape_branch_rate_bytes_per_second, vifshape_branch_ceil_bytes_per_second
  vifshape_branch_info             its parent, and the kind of its queue
  vifshape_interface_present       0: it has a policy or limits, and is not there
  vifshape_interface_shaped        0: not, or no more, as it was applied
  vifshape_policy_in_force         0: the agent refused what its directory says, or went back
  vifshape_agent_running, vifshape_build_info, vifshape_scrape_duration_seconds

Packages bring vifshape-exporter.service, a user who may do nothing, with the socket
127.0.0.1:9719 ("systemctl enable --now vifshape-exporter.socket"); the source has both
in examples, and there, as packages, prometheus/ with a configuration of Prometheus, alerts and
a dashboard for Grafana.

SIGNALS
  TERM, INT  the end, with exit status 0

EXIT STATUS
  0   ended by a signal; with --textfile: written
  1   an error
  5   only root may write to the directory
  64  wrong flags or arguments`,
		Args: args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			if c.Flags().Changed("textfile") && c.Flags().Changed("listen") {
				return usagef("--textfile writes a file and ends, and --listen stays: take one of them")
			}
			for _, name := range []string{"textfile", "listen"} { // a variable without a value says nothing of what is wanted
				if f := c.Flags().Lookup(name); f.Changed && f.Value.String() == "" {
					return usagef("--%s is empty: leave it out, or write %s", name, map[string]string{"textfile": "a directory", "listen": "unix:FILE or 127.0.0.1:9719"}[name])
				}
			}
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGTERM, os.Interrupt)
			defer stop()
			return e.exporter(ctx, o)
		},
	}
	c.Flags().StringVar(&o.listen, "listen", "", listenHelp)
	c.Flags().StringVar(&o.textfile, "textfile", "", "write "+exporter.File+" into `DIRECTORY`, and end")
	return c
}

func (e *env) exporter(ctx context.Context, o exporterOptions) error {
	x := exporter.New(exporter.Config{RunDir: e.runDir, Version: readVersion().Version, Warn: func(text string) { e.warnf("%s", text) }})
	if o.textfile != "" {
		return x.Write(ctx, o.textfile)
	}
	at, err := e.listeners(o.listen, (*record.Store).ExporterSocketFile, 0o666) // everybody may read the figures
	if err != nil {
		return err
	}
	debug.SetGCPercent(100) // it stays
	return x.Serve(ctx, at)
}
