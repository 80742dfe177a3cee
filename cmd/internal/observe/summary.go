package observe

import (
	"context"
	"fmt"
	"strings"

	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/link"
)

// Summary is what a network namespace is like, in one line. It takes no privileges and one
// look: that a branch is at its ceiling, which is a rate, shows as packets that wait there.
func Summary(ctx context.Context, m *shaper.Machine, agent func() bool) (string, error) {
	views, err := Links(ctx, m)
	if err != nil {
		return "", err
	}
	var shaped, others, bare []string
	for _, v := range views {
		name := words.Printable(v.Name)
		switch {
		case v.ReceivesFor != "":
		case len(v.Lost) > 0:
			shaped = append(shaped, fmt.Sprintf("%s not as it was applied (%s)", name, v.Lost[0]))
		case v.Shaper == "vifshape":
			shaped = append(shaped, shapedText(m, v))
		case shaper.Shapes(v.Qdisc):
			others = append(others, fmt.Sprintf("%s shaped by others (%s), see `vifshape import %s`", name, v.Shaper, name))
		case v.Up && leaves(v.Link):
			bare = append(bare, name)
		}
	}
	const most = 3
	if n := len(bare) - most; n > 0 {
		bare = append(bare[:most], fmt.Sprintf("%d more", n))
	}
	all := append(shaped, others...)
	where := "on this machine"
	if m.Store.NetNS != "" {
		where = "in this network namespace"
	}
	switch {
	case len(all) == 0:
		return fmt.Sprintf("nothing is shaped %s yet: vifshape init > policy.toml", where), nil
	case len(shaped) == 0:
		return strings.Join(all, "; ") + "; vifshape shapes nothing " + where + " yet", nil
	}
	if len(bare) > 0 {
		all = append(all, strings.Join(bare, ", ")+" not shaped")
	}
	if agent() {
		all = append(all, "agent running")
	} else {
		all = append(all, "agent not running")
	}
	return strings.Join(all, "; "), nil
}

// leaves says whether what an interface sends leaves the machine by it, or the container.
func leaves(l link.Link) bool {
	return l.Nature == link.Physical || l.Kind == "ppp" || l.Peer() && l.Master == 0
}

// shapedText says of an interface how many branches it has, where packets wait, and whose
// policy that is, as far as it can be known.
func shapedText(m *shaper.Machine, v *Link) string {
	inner, n := map[hierarchy.ClassID]bool{}, 0
	for _, b := range v.Branches {
		inner[b.Parent] = true
		if b.ID.Minor() != hierarchy.RootMinor {
			n++
		}
	}
	text := words.Number(n, "branch", "branches")
	d, r, err := m.Device(v.Name)
	if err == nil {
		if stats, err := d.Stats(); err == nil {
			now, waiting := byClass(stats), []string{}
			for _, b := range v.Branches {
				if !inner[b.ID] && now[b.ID].Backlog > 0 {
					waiting = append(waiting, string(b.Path))
				}
			}
			switch len(waiting) {
			case 0:
			case 1:
				text += ", packets wait in " + words.Printable(waiting[0])
			default:
				text += fmt.Sprintf(", packets wait in %d of them", len(waiting))
			}
		}
	}
	text = fmt.Sprintf("%s shaped (%s)", words.Printable(v.Name), text)
	if err == nil && r.Policy != "" && r.Policy != "-" {
		text += ", from " + r.PolicyName()
	}
	return text
}
