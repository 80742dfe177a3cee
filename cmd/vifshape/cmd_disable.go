package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/enabled"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/policy"
)

type disableOptions struct {
	policies string
	keep     bool
}

func newDisableCommand(e *env) *cobra.Command {
	var o disableOptions
	c := &cobra.Command{
		Use:   "disable NAME...",
		Short: "Undo enable: a policy is not applied at the next start any more",
		Long: `Disable removes /etc/vifshape/NAME.toml of each policy named, clears the interfaces that are
shaped by it, as clear does, but for limits, and with the last of them ends the agent and has
it started no more; what enable installed for that goes, what a package did stays. With --keep
interfaces stay as they are until the machine is started again. "vifshape enable --list" has the
names.
` + exitHelp,
		Args: args(1, -1, "the name of an enabled policy"),
		RunE: interruptible(func(c *cobra.Command, a []string) error { return e.disable(c.Context(), a, o) }),
	}
	c.Flags().StringVar(&o.policies, "policies", enabled.DefaultDir, policiesHelp)
	c.Flags().BoolVar(&o.keep, "keep", false, "leave interfaces as they are until the machine is started again")
	return c
}

func (e *env) disable(ctx context.Context, names []string, o disableOptions) error {
	m, dir, err := e.lasting(o.policies)
	if err != nil {
		return err
	}
	defer m.Close()
	files, err := dir.Files()
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, f := range files {
		there[f.Name] = true
	}
	var ifaces []string
	for i, n := range names {
		n = strings.TrimSuffix(filepath.Base(n), ".toml") // of the file, or of its copy
		of, err := m.From(dir.File(n), nil)
		if err != nil {
			return err
		}
		if !there[n] && len(of) == 0 { // a file that somebody has removed may have left a tree
			return fmt.Errorf("no policy %s is enabled in %s%s", n, dir.Path, didYouMean(files.Nearest(n)))
		}
		names[i], ifaces = n, append(ifaces, of...)
	}
	s, program, _, err := starter(m, dir)
	if err != nil {
		return err
	}
	if o.keep {
		ifaces = nil
	}
	// The files go last: by them the next disable knows what is left to do. But they go before
	// others may change anything: an agent that waits for that has read them.
	remove := func() error {
		for _, n := range names {
			err := dir.Remove(n)
			switch {
			case errors.Is(err, fs.ErrNotExist): // twice the same
			case err != nil && len(ifaces) > 0:
				return shaper.PartlyError{Err: err}
			case err != nil:
				return err
			}
			delete(there, n)
		}
		return nil
	}
	if len(ifaces) > 0 {
		err = m.Withdraw(ctx, ifaces, remove)
	} else {
		err = remove()
	}
	if err != nil {
		return err
	}
	for _, n := range names {
		if over, _ := policy.Over(dir.File(n)); len(over) > 0 {
			e.notef("%s.d is left, and is laid over what is enabled by that name again", dir.File(n))
		}
	}
	if s != nil && len(there) == 0 {
		if err := s.Disable(program); err != nil {
			return shaper.PartlyError{Err: err}
		}
	}
	return nil
}
