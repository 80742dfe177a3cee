// Command vifshape splits a network interface into a tree of named branches,
// each with a guaranteed rate, a ceiling, a priority and a queue of its own, and
// binds processes to them by their cgroups. See the README and "vifshape help".
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], &env{stdout: os.Stdout, stderr: os.Stderr, runDir: defaultRunDir}))
}
