package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/enabled"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/tc/link"
)

const policiesHelp = "the `DIRECTORY` of the policies that last"

type enableOptions struct {
	policies, name     string
	list, json, detail bool
}

func newEnableCommand(e *env) *cobra.Command {
	var o enableOptions
	c := &cobra.Command{
		Use:   "enable FILE | --list",
		Short: "Apply a policy, and have it applied at every start of the machine",
		Long: `Enable applies a policy as apply does, keeps a copy of it as /etc/vifshape/NAME.toml, and has
the agent started with the machine: by vifshape.service where systemd runs, which it installs
if no package has, else by a script in /etc/init.d. The agent applies what lies there before
the network is used, and to interfaces that appear later: one that is not there now waits, and
so does one that is made anew each time, as a VPN's. NAME is the file's, unless --name gives
another; the same name takes the place of what was enabled by it, and interfaces that it had
and has no more are cleared. An interface belongs to one enabled policy.

The copy may be edited: "vifshape plan" without a file shows what differs from what is in
force, "vifshape apply" without one and "systemctl reload vifshape" bring it into force.
"enable --list" shows what is enabled: each interface is in force, changed (the file says
something else by now), waits (it is not there), not applied, shaped otherwise (by another
policy), or another policy's, which names it better. With --detailed-exitcode it ends with 2
where an interface that is there is none of these but in force, or waits to be confirmed.
"vifshape disable NAME" undoes all of it. What this machine has otherwise than others stands
in /etc/vifshape/NAME.toml.d/*.toml, which is laid over the copy.

In a network namespace that is not the machine's own nothing is started: have an agent of it
run there with --policies. "ip netns exec" puts /etc/netns/NAME/vifshape in the place of
/etc/vifshape, where both are there; else the directory has to be written, as /etc/vifshape
is the machine's.
` + strings.Replace(exitHelp, "  3 ", "  2    with --detailed-exitcode: done, and something was changed; with --list: something differs\n  3 ", 1),
		Args: args(0, 1, "one policy file"),
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			switch {
			case o.json && !o.list:
				return usagef("--json is a form of --list: write that, too")
			case o.list && len(a) > 0:
				return usagef("--list shows what is enabled, and takes no file")
			case o.list:
				return e.listEnabled(o)
			case len(a) == 0:
				return usagef("enable needs one policy file, or --list: %s", c.UseLine())
			}
			return e.enable(c.Context(), a[0], o)
		}),
	}
	f := c.Flags()
	f.StringVar(&o.policies, "policies", enabled.DefaultDir, policiesHelp)
	f.StringVar(&o.name, "name", "", "keep it as `NAME`.toml (default: the file's name)")
	f.BoolVar(&o.list, "list", false, "show the policies that are enabled, and change nothing")
	f.BoolVar(&o.json, "json", false, "with --list: print JSON")
	f.BoolVar(&o.detail, "detailed-exitcode", false, "exit with 2 when something was changed; with --list: when something is not in force that is there")
	return c
}

func (e *env) enable(ctx context.Context, file string, o enableOptions) (err error) {
	name := o.name
	if name == "" {
		if file == "-" {
			return usagef("what comes from standard input has no name: write --name NAME, too")
		}
		name = filepath.Base(file)
	}
	name = strings.TrimSuffix(name, ".toml")
	if err := enabled.CheckName(name); err != nil {
		return usageError{err}
	}
	m, dir, err := e.lasting(o.policies)
	if err != nil {
		return err
	}
	defer m.Close()
	r, text, err := shaper.Copied(file, dir.File(name))
	if err != nil {
		return err
	}
	s, program, why, err := starter(m, dir)
	if err != nil {
		return err
	}
	files, err := dir.Files()
	if err == nil {
		files, err = files.With(enabled.File{Name: name, Path: dir.File(name), Policy: r.Policy()})
	}
	if err != nil {
		return err
	}
	of, err := scope(m, files, dir.File(name))
	if err != nil {
		return err
	}
	staged, err := dir.Stage(name, text)
	if err != nil {
		return fmt.Errorf("%s cannot be kept, and nothing was changed: %w", file, err)
	}
	defer func() { err = errors.Join(err, staged.Discard()) }()
	// Kept before others may change anything: an agent that waits for that has read what was there
	// before, and would apply it.
	changed := false
	keep := func() (err error) {
		if changed, err = staged.Commit(); err != nil {
			err = shaper.PartlyError{Err: fmt.Errorf("%s is applied, but cannot be kept: %w", file, err)}
		}
		return err
	}
	c, err := m.Apply(ctx, r, shaper.ApplyOptions{What: "enable " + file, Scope: of, Then: keep})
	if err != nil {
		return err
	}
	defer c.Close()
	tellStrayed(ctx, m, c)
	if len(c.Targets)+len(c.Absent)+len(c.Unknown) == 0 {
		e.warnf("all that %s names belongs to other enabled policies, which name it better: nothing is applied", file)
	}
	left, err := m.From(dir.File(name), r.Policy())
	if err == nil && len(left) > 0 {
		e.notef("%s has no %s any more: cleared", dir.File(name), strings.Join(left, " and no "))
		err = m.Withdraw(ctx, left, nil)
	}
	if err != nil {
		return shaper.PartlyError{Err: fmt.Errorf("%s is applied and kept, but not all is cleared that it has no more: %w", file, err)}
	}
	started := false
	if s == nil {
		e.notef("%s", why)
	} else if started, err = s.Enable(program); err != nil {
		return shaper.PartlyError{Err: fmt.Errorf("%s is applied and kept, but nothing applies it when the machine starts: %w", file, err)}
	}
	if o.detail && (changed || started || len(left) > 0 || !c.Empty()) {
		return codeError(exitChanges)
	}
	return nil
}

// lasting opens the network namespace and its directory of the policies that last. The caller
// closes the first.
func (e *env) lasting(path string) (*shaper.Machine, *enabled.Dir, error) {
	m, err := e.machine()
	if err != nil {
		return nil, nil, err
	}
	dir, err := enabled.Open(path)
	if err != nil {
		err = usageError{err}
	}
	own := true
	if err == nil {
		own, err = m.Own()
	}
	if err == nil && !own && dir.Path == enabled.DefaultDir && !dir.Mounted() {
		err = fmt.Errorf("this network namespace is not the machine's own, and %s is the machine's: write --policies DIRECTORY", dir.Path)
	}
	if err != nil {
		m.Close()
		return nil, nil, err
	}
	return m, dir, nil
}

// starter is what starts the agent of a directory's policies with the machine, and the
// program that it starts; nil: nothing of ours, and why.
func starter(m *shaper.Machine, dir *enabled.Dir) (s enabled.Starter, program, why string, err error) {
	own, err := m.Own()
	switch {
	case err != nil:
		return nil, "", "", err
	case !own:
		return nil, "", fmt.Sprintf("this network namespace is not the machine's own: have `vifshape agent --policies %s` started in it, which applies what is there", dir.Path), nil
	case dir.Path != enabled.DefaultDir:
		return nil, "", fmt.Sprintf("what is started with the machine goes by %s: have `vifshape agent --policies %s` started for this", enabled.DefaultDir, dir.Path), nil
	}
	if program, err = os.Executable(); err == nil {
		program, err = filepath.EvalSymlinks(program)
	}
	if err == nil {
		err = enabled.CheckProgram(program)
	}
	if err == nil {
		s, err = enabled.Start()
	}
	return s, program, "", err
}

// enabledJSON is the stable form of enable --list.
type enabledJSON struct {
	Policies []enabledPolicyJSON `json:"policies"`
}

type enabledPolicyJSON struct {
	Name       string                 `json:"name"`
	File       string                 `json:"file"`
	Error      string                 `json:"error,omitempty"` // why it is not in force
	Interfaces []enabledInterfaceJSON `json:"interfaces"`
}

type enabledInterfaceJSON struct {
	Interface string `json:"interface"`
	State     string `json:"state"`
}

func (e *env) listEnabled(o enableOptions) error {
	m, dir, err := e.lasting(o.policies)
	if err != nil {
		return err
	}
	defer m.Close()
	files, err := dir.Files()
	if err != nil {
		return err
	}
	out, wrong := enabledJSON{Policies: []enabledPolicyJSON{}}, map[string]error{}
	for _, f := range files {
		p := enabledPolicyJSON{Name: f.Name, File: f.Path, Interfaces: []enabledInterfaceJSON{}}
		if f.Err != nil {
			p.Error = f.Err.Error()
		} else {
			of, err := scope(m, files, f.Path)
			if err != nil {
				return err
			}
			wanted, absent, err := m.Wanted(f.Policy, of.Only)
			if err != nil {
				p.Error, wrong[f.Name] = err.Error(), err
			}
			for _, w := range wanted {
				iface := w.Tree.Port.Device
				state := shaper.Waiting
				if w.Unknown == nil {
					if state, err = m.InForce(iface, f.Path, w.Spec); err != nil {
						return err
					}
				}
				p.Interfaces = append(p.Interfaces, enabledInterfaceJSON{iface, string(state)})
			}
			listed := map[string]bool{}
			for _, w := range wanted {
				listed[string(w.By)] = true
			}
			for _, no := range absent {
				listed[no.Name] = true
				p.Interfaces = append(p.Interfaces, enabledInterfaceJSON{no.Name, string(shaper.Waiting)})
			}
			for _, s := range f.Policy.Specs {
				if !listed[s.Interface] && err == nil {
					p.Interfaces = append(p.Interfaces, enabledInterfaceJSON{s.Interface, string(shaper.Anothers)})
				}
			}
		}
		out.Policies = append(out.Policies, p)
	}
	var differ error
	if o.detail {
		if differ, err = differs(m, out); err != nil {
			return err
		}
	}
	if o.json {
		return cmp.Or(e.json(out), differ)
	}
	if len(files) == 0 {
		e.notef("no policy is enabled in %s", dir.Path)
		return nil
	}
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tINTERFACE\tSTATE")
	for _, p := range out.Policies {
		for _, i := range p.Interfaces {
			fmt.Fprintf(w, "%s\t%s\t%s\n", words.Printable(p.Name), i.Interface, i.State)
		}
		if p.Error != "" {
			fmt.Fprintf(w, "%s\t-\twrong\n", words.Printable(p.Name))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if !agentOf(m).Listens() {
		e.warnf("no agent runs in this network namespace: an interface that appears later is not shaped by itself")
	}
	var bad error
	for i, p := range out.Policies {
		if err := cmp.Or(files[i].Err, wrong[p.Name]); err != nil {
			e.report(err)
			bad = codeError(exitError)
		}
	}
	return cmp.Or(bad, differ)
}

// differs says, by exit status 2, that something is not in force that is there, or waits to be
// confirmed.
func differs(m *shaper.Machine, all enabledJSON) (is, err error) {
	u, err := m.Store.Unconfirmed()
	if err != nil {
		return nil, err
	}
	for _, p := range all.Policies {
		if u != nil && u.Policy == p.File || p.Error != "" {
			is = codeError(exitChanges)
		}
		for _, i := range p.Interfaces {
			switch shaper.Standing(i.State) {
			case shaper.InForce, shaper.Waiting, shaper.Anothers:
			default:
				is = codeError(exitChanges)
			}
		}
	}
	return is, nil
}

// scope is that of an enabled policy among all of them: what belongs to it, now and when it
// appears.
func scope(m *shaper.Machine, all enabled.Files, path string) (shaper.Scope, error) {
	uplinks, err := m.Uplinks(all.ByRoute())
	return shaper.Scope{Waits: true, Only: func(l link.Link) bool { return all.Owner(l.Identity(uplinks)) == path }}, err
}

// eachEnabled does something with each enabled policy, of which there are some unless the
// directory was given. What is wrong with one is reported and does not stop the others; the
// error is the gravest of them, whose text was printed.
func (e *env) eachEnabled(policies string, given bool, do func(file string, s shaper.Scope) error) error {
	m, dir, err := e.lasting(policies)
	if err != nil {
		return err
	}
	defer m.Close()
	files, err := dir.Files()
	if err == nil && len(files) == 0 && given {
		e.notef("no policy is enabled in %s", dir.Path)
	} else if err == nil && len(files) == 0 {
		err = usagef("no policy is enabled in %s: write the file that is meant", dir.Path)
	}
	if err != nil {
		return err
	}
	code := exitOK
	for _, f := range files {
		err := f.Err
		of := shaper.Scope{}
		if err == nil {
			of, err = scope(m, files, f.Path)
		}
		if err == nil {
			err = do(f.Path, of)
		}
		if errors.Is(err, context.Canceled) {
			return err
		}
		if c := exitCode(err); c != exitOK {
			e.report(err)
			code = worse(code, c)
		}
	}
	if code != exitOK {
		return codeError(code)
	}
	return nil
}

// worse is the exit status of two things of which one ended with each: what went wrong counts
// more than that something was changed.
func worse(a, b int) int {
	if a == exitOK || a == exitChanges || b == exitPartly {
		return b
	}
	return a
}
