package main

import (
	"context"

	"github.com/vifshape/vifshape/cmd/internal/observe"
)

// daily are the lines that most people need, and no more.
const daily = `  vifshape run --up 5mbit -- rsync ...            limit one program, until it ends
  vifshape limit unit:nginx.service --up 30mbit   limit what runs already
  vifshape init > policy.toml                     a policy for this machine, to start from
  vifshape apply policy.toml                      make the kernel match it
  vifshape show                                   what it is doing

  vifshape help                                   all commands

`

// today prints the daily lines and what this machine is like. It is no error that somebody
// may not know all of that.
func (e *env) today(ctx context.Context) {
	e.printf("%s", daily)
	m, err := e.machine()
	if err == nil {
		defer m.Close()
		m.TellUnconfirmed()
		var text string
		if text, err = observe.Summary(ctx, m, agentOf(m).Listens); err == nil {
			e.printf("%s\n", text)
			return
		}
	}
	e.printf("what is shaped here cannot be read: %v\n", err)
}
