package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/vifshape/vifshape/tc/rtnl"
)

// defaultRunDir holds what the kernel cannot keep for us. It is empty again
// after a reboot, as the kernel's queues are.
const defaultRunDir = "/run/vifshape"

// env is where a command's words go and what it works on.
type env struct {
	stdout, stderr io.Writer
	runDir         string
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
func (e *env) json(v any) error {
	enc := json.NewEncoder(e.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// open connects to the kernel's traffic control in the caller's namespace.
func (e *env) open() (*rtnl.Conn, error) {
	return rtnl.Open(rtnl.Config{Warn: func(s string) { e.warnf("kernel: %s", s) }})
}
