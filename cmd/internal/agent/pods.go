package agent

import (
	"context"
	"errors"
	"strings"

	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/cmd/client"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// checkPods refuses what cannot be a pod. Names come into messages and into names of branches.
func checkPods(q *client.Request) error {
	if q.Path != "" {
		return badRequest("%q has no path", client.Pods)
	}
	for i := range q.Run {
		p := &q.Run[i]
		of, err := bind.Parse(p.Limit())
		switch {
		case p.ID == "" || !plain(p.ID):
			return badRequest("%q is no id of a pod", p.ID)
		case err != nil || !bind.Pods(of.Name).Named():
			return badRequest("%q is no pod: it takes a namespace and a name", p)
		case p.Cgroup == "" || !plain(p.Cgroup) || resolve.PodCgroup(p.Cgroup) == "/":
			return badRequest("%s: %q is no cgroup of a pod", p, p.Cgroup)
		case !plain(p.Wish):
			return badRequest("%s: %q is no branch", p, p.Wish)
		case p.Up.Percent() || p.Down.Percent():
			return badRequest("%s: its ceilings are bandwidths, and no percentages", p)
		}
	}
	return nil
}

// plain says whether a text has nothing in it that a line of a log could not show.
func plain(s string) bool {
	return len(s) <= 4096 && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd })
}

// tellPods notes pods for root, who starts them: for one that no branch holds, that is.
func tellPods(ctx context.Context, m *shaper.Machine, q client.Request, p *peer) ([]client.Place, error) {
	who, err := petitionerOf(m, p)
	if err != nil {
		return nil, err
	}
	if who.UID != 0 || len(who.Homes) > 0 {
		return nil, shaper.DeniedError{Err: errors.New("only root may tell of pods, and from outside of all branches")}
	}
	at, err := m.TellPods(ctx, q.Run, q.Gone)
	places := make([]client.Place, len(at))
	for i, x := range at {
		places[i] = client.Place{ID: x.ID, Branches: x.Paths, Remarks: x.Remarks}
	}
	return places, err
}
