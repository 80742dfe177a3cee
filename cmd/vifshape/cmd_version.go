package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func newVersionCommand(e *env) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version of vifshape",
		Long:  "Print the version of vifshape, the revision that it was built from, and the version of Go." + plainExitHelp,
		Args:  args(0, 0, ""),
		RunE: func(*cobra.Command, []string) error {
			v := readVersion()
			if asJSON {
				return e.json(v)
			}
			e.printf("vifshape %v\n", v)
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

type version struct {
	Version  string `json:"version"`
	Revision string `json:"revision"`
	Go       string `json:"go"`
}

func (v version) String() string { return fmt.Sprintf("%s (%s, %s)", v.Version, v.Revision, v.Go) }

// readVersion is what the Go toolchain recorded in the binary.
func readVersion() version {
	v := version{Version: "devel", Revision: "unknown revision", Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if m := info.Main.Version; m != "" && m != "(devel)" {
		v.Version = m
	}
	dirty := ""
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				dirty = ", changed"
			}
		}
	}
	v.Revision += dirty
	return v
}

func newCompletionCommand(e *env) *cobra.Command {
	shells := map[string]func(*cobra.Command, io.Writer) error{
		"bash":       func(c *cobra.Command, w io.Writer) error { return c.GenBashCompletionV2(w, true) },
		"zsh":        func(c *cobra.Command, w io.Writer) error { return c.GenZshCompletion(w) },
		"fish":       func(c *cobra.Command, w io.Writer) error { return c.GenFishCompletion(w, true) },
		"powershell": func(c *cobra.Command, w io.Writer) error { return c.GenPowerShellCompletionWithDesc(w) },
	}
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print a completion script for bash, zsh, fish or powershell",
		Long: `Print a completion script. For bash:

  vifshape completion bash > /etc/bash_completion.d/vifshape` + plainExitHelp,
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Args:      args(1, 1, "one shell"),
		RunE: func(c *cobra.Command, a []string) error {
			gen, ok := shells[a[0]]
			if !ok {
				return usagef("no completion for shell %q: there is one for bash, zsh, fish and powershell", a[0])
			}
			return gen(c.Root(), e.stdout)
		},
	}
}
