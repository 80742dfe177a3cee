// Package trial tries out on real packets, in network namespaces of its own, what vifshape
// promises: that branches get what they should, and that nobody gets out of one. It leaves
// the interfaces of the machine alone, prints nothing, and takes root.
package trial

import (
	"context"
	"errors"

	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
)

// bring brings a policy into force in the caller's network namespace. Done is told what
// was changed; it may be nil.
func bring(ctx context.Context, runDir, file, binding string, tell func(shaper.Remark), done func([]hierarchy.Plan) error) error {
	r := shaper.Read(file)
	m, err := shaper.Open(runDir, tell)
	if err != nil {
		return r.Before(ctx, err)
	}
	defer m.Close()
	c, err := m.Apply(ctx, r, shaper.ApplyOptions{What: "apply " + file, Scope: shaper.Scope{Binding: binding}})
	if err != nil {
		return err
	}
	defer c.Close()
	if done == nil {
		return nil
	}
	return done(c.Plans())
}

// vacate removes what vifshape made in a namespace that is about to go.
func vacate(runDir string, n *lab.NetNS) error {
	return n.Do(func() error {
		m, err := shaper.Open(runDir, func(shaper.Remark) {})
		if err != nil {
			return err
		}
		defer m.Close()
		return errors.Join(m.ClearAll(context.Background(), nil), m.Store.Discard())
	})
}
