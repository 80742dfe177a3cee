package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
)

// run is the whole program: it parses the command line, carries the command out
// and returns the exit code.
func run(ctx context.Context, args []string, e *env) int {
	// A command lives for milliseconds and its policy may have ten thousand
	// branches: collecting garbage meanwhile costs more than it frees.
	debug.SetGCPercent(800)
	e.args = args
	out := words.NewTerminal(e.stdout)
	e.stdout, e.stderr = out, words.NewTerminal(e.stderr)
	var err error
	if len(args) > 0 {
		root := newRootCommand(e, args)
		root.SetArgs(args)
		err = root.ExecuteContext(ctx)
	} else {
		e.today(ctx)
	}
	if code := codeError(0); out.Err() != nil && (err == nil || errors.As(err, &code)) {
		err = fmt.Errorf("results could not be written: %w", out.Err())
	}
	if err != nil {
		e.report(err)
	}
	return exitCode(err)
}

// newRootCommand is the program with the commands that a command line needs; none:
// with all of them.
func newRootCommand(e *env, args []string) *cobra.Command {
	version := false
	c := &cobra.Command{
		Use:   "vifshape",
		Short: "Split a network interface into named branches and keep processes in them",
		Long: `vifshape splits a network interface of this machine into a tree of named
branches. Each branch is one class of the kernel's HTB queueing discipline: a
guaranteed rate, a ceiling that it may borrow up to, a priority, and a queue of
its own. Processes, services and users are bound to a branch by their cgroup,
with all their children.

One TOML file describes the tree:

  version = 1

  [interface.eth0]
  rate = "940mbit"              # what the link really carries

  [interface.eth0.web]
  rate = "50%"
  bind = ["unit:nginx.service"]

  [interface.eth0.backup]
  ceil = "20mbit"

  vifshape init > policy.toml   write one for this machine
  vifshape check policy.toml    is it right?
  vifshape plan policy.toml     what would change?
  vifshape apply policy.toml    change it, in place wherever the kernel can
  vifshape show                 what is it doing?
  vifshape run eth0/backup -- rsync ...

It takes none to limit one thing:

  vifshape run --up 5mbit -- rsync ...
  vifshape limit unit:nginx.service --up 30mbit

Topics of "vifshape help TOPIC":
` + listTopics(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noCommand,
		RunE: func(c *cobra.Command, _ []string) error {
			if version {
				e.printf("vifshape %v\n", readVersion())
				return nil
			}
			return c.Help()
		},
	}
	c.SetOut(e.stdout)
	c.SetErr(e.stderr)
	c.SetFlagErrorFunc(badFlag)
	c.CompletionOptions.DisableDefaultCmd = true
	c.Flags().BoolVar(&version, "version", false, "print the version, as the command does")
	c.SetHelpCommand(newHelpCommand(e))
	cobra.EnableCommandSorting = false // the lists are in the order of use
	only := alone(args)
	all := groups()
	for _, g := range all {
		c.AddGroup(&cobra.Group{ID: g.title, Title: g.title})
		for _, m := range g.commands {
			if only == "" || only == m.name {
				sub := m.make(e)
				sub.GroupID = g.title
				c.AddCommand(sub)
			}
		}
	}
	c.SetHelpCommandGroupID(all[len(all)-1].title)
	wrapArgs(c)
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
	return c
}

// group is commands that people want for one purpose.
type group struct {
	title    string
	commands []command
}

type command struct {
	name string
	make func(*env) *cobra.Command
}

// groups are all of them, in the order of help. A function: the hints of errors ask what
// commands there are, and commands hint.
func groups() []group {
	return []group{
		{"Day to day:", []command{{"init", newInitCommand}, {"check", newCheckCommand}, {"plan", newPlanCommand}, {"apply", newApplyCommand}, {"show", newShowCommand}, {"run", newRunCommand}}},
		{"Without a policy:", []command{{"limit", newLimitCommand}, {"limits", newLimitsCommand}, {"unlimit", newUnlimitCommand}}},
		{"Change the tree:", []command{{"add", newAddCommand}, {"remove", newRemoveCommand}, {"confirm", newConfirmCommand}, {"rollback", newRollbackCommand}, {"clear", newClearCommand}}},
		{"Make it last:", []command{{"enable", newEnableCommand}, {"disable", newDisableCommand}}},
		{"From and to other tools:", []command{{"import", newImportCommand}, {"export", newExportCommand}}},
		{"Put processes into it:", []command{{"attach", newAttachCommand}, {"bind", newBindCommand}, {"unbind", newUnbindCommand}, {"agent", newAgentCommand}}},
		{"Look:", []command{{"ls", newLsCommand}, {"top", newTopCommand}, {"bindings", newBindingsCommand}, {"self", newSelfCommand}, {"which", newWhichCommand}, {"what-if", newWhatIfCommand}, {"latency", newLatencyCommand}, {"watch", newWatchCommand}, {"exporter", newExporterCommand}, {"web", newWebCommand}}},
		{"Check what holds:", []command{{"explain", newExplainCommand}, {"doctor", newDoctorCommand}, {"prove", newProveCommand}, {"selftest", newSelftestCommand}, {"demo", newDemoCommand}}},
		{"Help:", []command{{"man", newManCommand}, {"completion", newCompletionCommand}, {"version", newVersionCommand}}},
	}
}

// alone is the command that a command line calls, when no other has to be made for
// it: a start is short, and making all of them takes a good part of it. Empty: all
// are needed, to be listed, or to say which may have been meant.
func alone(args []string) string {
	if len(args) == 0 || args[0] == "man" || args[0] == "completion" {
		return ""
	}
	for _, g := range groups() {
		for _, m := range g.commands {
			if m.name == args[0] {
				return m.name
			}
		}
	}
	return ""
}

// noCommand is for what has commands below it: whatever follows is meant as one.
func noCommand(c *cobra.Command, a []string) error {
	if len(a) == 0 {
		return nil
	}
	if _, ok := topicOf(a[0]); ok && !c.HasParent() {
		return fmt.Errorf("%s is a topic, not a command: `vifshape help %s` tells of it", a[0], a[0])
	}
	near := didYouMean(hierarchy.Nearest(a[0], commandsOf(c)))
	if other := otherCommands[a[0]]; other != "" && !c.HasParent() {
		near = fmt.Sprintf(": it is called %s here", other)
	}
	return fmt.Errorf("unknown command %q for %q%s", a[0], c.CommandPath(), near)
}

// otherCommands are words that people bring along from other tools, and what does it here.
var otherCommands = map[string]string{
	"status": "show", "stats": "show", "stat": "show", "list": "ls", "links": "ls", "htop": "top",
	"start": "apply", "load": "apply", "set": "apply", "up": "apply",
	"stop": "clear", "delete": "clear", "del": "clear", "down": "clear", "flush": "clear", "reset": "clear",
	"validate": "check", "verify": "check", "diff": "plan", "exec": "run", "monitor": "watch", "undo": "rollback", "revert": "rollback",
	"throttle": "limit", "cap": "limit",
}

// commandsOf are the names of the commands of c.
func commandsOf(c *cobra.Command) (names []string) {
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	return names
}

// didYouMean is the question for a name; empty: none.
func didYouMean(name string) string {
	if name == "" {
		return ""
	}
	return fmt.Sprintf(": did you mean %s?", name)
}

// badFlag is the error of a flag, with the flag of c that was most likely meant.
func badFlag(c *cobra.Command, err error) error {
	if no := (*pflag.NotExistError)(nil); errors.As(err, &no) && len(no.GetSpecifiedName()) > 1 {
		var names []string
		c.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if near := hierarchy.Nearest(no.GetSpecifiedName(), names); near != "" {
			err = fmt.Errorf("%w%s", err, didYouMean("--"+near))
		}
	}
	return usageError{err}
}

// wrapArgs makes cobra's complaints about arguments usage errors.
func wrapArgs(c *cobra.Command) {
	check := c.Args
	c.Args = func(c *cobra.Command, args []string) error {
		if check == nil {
			return nil
		}
		if err := check(c, args); err != nil {
			return usageError{err}
		}
		return nil
	}
}

// interruptible makes Ctrl-C and SIGTERM end the context of a command, which then
// puts back what it began. Not every command is: who asks for signals changes what
// they do in the programs that run starts. An ignored Ctrl-C stays ignored.
func interruptible(f func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, a []string) error {
		signals := []os.Signal{syscall.SIGTERM}
		if !signal.Ignored(os.Interrupt) {
			signals = append(signals, os.Interrupt)
		}
		ctx, stop := signal.NotifyContext(c.Context(), signals...)
		defer stop()
		c.SetContext(ctx)
		return f(c, a)
	}
}

// parsePath reads the path of a branch or an interface from the command line.
func parsePath(s string) (hierarchy.Path, error) {
	if slices.Contains(strings.Split(s, "/"), "") {
		return "", usagef("%q is no branch: write the interface and the branches down to it with one slash between them, as in eth0/web", s)
	}
	return hierarchy.Path(s), nil
}

// optionalPath is [parsePath] of the only argument; empty where there is none.
func optionalPath(a []string) (hierarchy.Path, error) {
	if len(a) == 0 {
		return "", nil
	}
	return parsePath(a[0])
}

// args checks the number of arguments and says what they are.
func args(least, most int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, a []string) error {
		switch {
		case most == 0 && len(a) > 0:
			return fmt.Errorf("%s takes no arguments, but got %q: %s", c.Name(), a[0], c.UseLine())
		case len(a) < least:
			return fmt.Errorf("%s needs %s: %s", c.Name(), what, c.UseLine())
		case most >= 0 && len(a) > most:
			return fmt.Errorf("%s takes %s and no more, but got %q: %s", c.Name(), what, a[most], c.UseLine())
		}
		return nil
	}
}
