package main

import (
	"fmt"
	"io"

	"github.com/vifshape/vifshape/cmd/internal/schema"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/policy"
)

// defaultRunDir holds what the kernel cannot keep for us. It is empty again
// after a reboot, as the kernel's queues are.
const defaultRunDir = "/run/vifshape"

// env is where a command's words go and what it works on.
type env struct {
	stdout, stderr io.Writer
	runDir         string
	args           []string // the command line that is carried out
}

// printf writes to stdout: results.
func (e *env) printf(format string, args ...any) { fmt.Fprintf(e.stdout, format, args...) }

// warnf writes a warning to stderr.
func (e *env) warnf(format string, args ...any) {
	fmt.Fprintf(e.stderr, "vifshape: warning: "+format+"\n", args...)
}

// hintf writes a way on to stderr.
func (e *env) hintf(format string, args ...any) {
	fmt.Fprintf(e.stderr, "vifshape: hint: "+format+"\n", args...)
}

// notef writes a remark to stderr.
func (e *env) notef(format string, args ...any) {
	fmt.Fprintf(e.stderr, "vifshape: "+format+"\n", args...)
}

// json writes v to stdout.
func (e *env) json(v any) error { return schema.Write(e.stdout, v) }

// machine opens the network namespace that the program runs in.
func (e *env) machine() (*shaper.Machine, error) { return shaper.Open(e.runDir, e.tell) }

// tell writes a remark to stderr.
func (e *env) tell(r shaper.Remark) {
	switch {
	case r.At != nil:
		fmt.Fprint(e.stderr, policy.Errors{*r.At}.Render())
	case r.Level == shaper.Warning:
		e.warnf("%s", r.Text)
	case r.Level == shaper.Hint:
		e.hintf("%s", r.Text)
	default:
		e.notef("%s", r.Text)
	}
}
