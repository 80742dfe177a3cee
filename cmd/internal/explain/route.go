package explain

import (
	"slices"

	"github.com/vifshape/vifshape/cgroup/socket"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// routes says by which interface connections leave, by the tables of this network namespace.
type routes struct {
	conn  *rtnl.Conn
	iface string // that is looked at
	links []link.Link
	known map[link.Flow]string
}

func newRoutes(c *rtnl.Conn, iface string) (*routes, error) {
	links, err := link.List(c)
	return &routes{c, iface, links, map[link.Flow]string{}}, err
}

// other is the interface by which a connection leaves that goes past the one that is looked
// at; empty where it goes there, or nobody can tell.
func (r *routes) other(t socket.TCP) (string, error) {
	if t.Device != 0 {
		return r.name(t.Device), nil
	}
	if t.Remote.Addr().IsLinkLocalUnicast() {
		return "", nil // every interface has such addresses
	}
	f := link.Flow{From: t.Local.Addr(), To: t.Remote.Addr(), Mark: t.Mark, UID: t.UID}
	if name, ok := r.known[f]; ok {
		return name, nil
	}
	index, err := link.Route(r.conn, f)
	r.known[f] = r.name(index)
	return r.known[f], err
}

// name is that of an interface whose packets do not come to the one that is looked at.
func (r *routes) name(index int) string {
	i := slices.IndexFunc(r.links, func(l link.Link) bool { return l.Index == index })
	if i < 0 || r.links[i].Name == r.iface || r.links[i].ByRoute {
		return ""
	}
	for _, l := range link.Carriers(r.links, r.links[i]) {
		if l.Name == r.iface || l.ByRoute {
			return ""
		}
	}
	return r.links[i].Name
}
