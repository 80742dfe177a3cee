package shaper

import (
	"context"
	"time"

	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
)

// drift is what has become different on an interface since vifshape changed it: the steps
// from what its record tells of to what there is. What is bound is left out: cgroups come and
// go; and the classifier, of which [Interface.Losses] tells.
func (m *Machine) drift(ctx context.Context, x *Interface, is hierarchy.State) (hierarchy.Plan, error) {
	if x.Record.Policy == "" {
		return hierarchy.Plan{Device: is.Device}, nil
	}
	was, err := m.said(ctx, x, x.Record)
	if err != nil {
		return hierarchy.Plan{}, err
	}
	was.Hook, was.Bound, was.Matched = is.Hook, is.Bound, is.Matched
	return hierarchy.Diff(was, is), nil
}

// Drift works out what has become different on the interfaces since they were applied, and
// says it. It is for those who look: apply makes all of it what the policy says.
func (c *Changes) Drift(ctx context.Context) error {
	const most = 10
	for _, x := range c.Targets {
		var err error
		if x.Drifted, err = c.m.drift(ctx, x.Interface, x.before); err != nil {
			return err
		}
		about := hierarchy.Path(x.Tree.Port.Device)
		said := "it was applied at " + x.Record.Applied.Local().Format(time.DateTime)
		if x.Record.Policy == record.NoPolicy {
			said = "its limits say"
		}
		for i, s := range x.Drifted.Steps {
			if i == most {
				c.m.Warnf(about, "%s: and %d more", about, len(x.Drifted.Steps)-most)
				break
			}
			c.m.Warnf(about, "%s: not as %s: %s", about, said, words.Past(s))
		}
	}
	return nil
}
