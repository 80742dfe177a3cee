package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
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

func newManCommand(e *env) *cobra.Command {
	dir := ""
	c := &cobra.Command{
		Use:   "man [COMMAND]",
		Short: "Print the manual page of vifshape or of one command",
		Long: `Print the manual page of vifshape, or of one of its commands, in the form that
man reads:

  vifshape man apply | man -l -
  vifshape man qdisc | man -l -        the queueing disciplines of leaves
  vifshape man --dir /usr/local/share/man/man8` + plainExitHelp,
		Args: args(0, 1, "one command at most"),
		RunE: func(c *cobra.Command, a []string) error {
			// A fixed date, so that the same source gives the same page.
			date := time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)
			h := &doc.GenManHeader{Section: "8", Source: "vifshape", Manual: "vifshape", Date: &date}
			root := c.Root()
			root.DisableAutoGenTag = true
			if dir != "" {
				if err := doc.GenManTree(root, h, dir); err != nil {
					return err
				}
				f, err := os.Create(filepath.Join(dir, "vifshape-qdisc.7"))
				if err != nil {
					return err
				}
				return errors.Join(qdiscManual(root, h, f), f.Close())
			}
			if len(a) == 1 && a[0] == qdiscTopic {
				return qdiscManual(root, h, e.stdout)
			}
			if len(a) == 1 {
				sub, _, err := root.Find(a)
				if err != nil || sub == root {
					return usagef("no command %q: `vifshape help` lists them", a[0])
				}
				root = sub
			}
			return manual(root, h, e.stdout)
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "write a page for every command into `DIR`")
	return c
}

// manual writes the page of one command.
func manual(c *cobra.Command, h *doc.GenManHeader, w io.Writer) error {
	if err := doc.GenMan(c, h, w); err != nil {
		return fmt.Errorf("manual page: %w", err)
	}
	return nil
}
