package main

import (
	"io/fs"
	"net"
	"path/filepath"

	"github.com/vifshape/vifshape/cmd/internal/listen"
	"github.com/vifshape/vifshape/cmd/internal/record"
)

const listenHelp = "listen at `PLACE`: unix:FILE or 127.0.0.1:PORT"

// listeners are where a server listens: where it is told, else at sockets that systemd hands
// over, else at its own file in the run directory. Who may connect to a file says its mode.
func (e *env) listeners(where string, own func(*record.Store) string, mode fs.FileMode) ([]net.Listener, error) {
	passed, err := listen.Passed()
	switch {
	case err != nil:
		return nil, err
	case len(passed) > 0 && where != "":
		return nil, usagef("systemd hands over sockets, and --listen names another place: leave it out")
	case len(passed) > 0:
		return passed, nil
	}
	var a listen.Address
	if where != "" {
		if a, err = listen.ParseAddress(where); err != nil {
			return nil, usageError{err}
		}
	} else {
		s, err := record.Open(e.runDir)
		if err != nil {
			return nil, err
		}
		a = listen.Socket(own(s))
		_ = record.MakeDir(filepath.Dir(own(s))) // that it fails shows as it listens
	}
	l, err := a.Listen(mode)
	if err != nil {
		return nil, err
	}
	return []net.Listener{l}, nil
}
