package amend

import (
	"fmt"

	"github.com/vifshape/vifshape/hierarchy"
)

const (
	// Most is how many branches users may add below one that is delegated to them.
	Most = 64
	// least is the least rate of a leaf where users add branches. A slower one might
	// borrow more than its share: it gets a frame of 1500 bytes in each turn, which
	// package tc gives to 24 kbit/s and above in proportion.
	least = 32 * hierarchy.Kbit
)

// Room refuses one more branch of users below the branch given to them, if added has
// [Most] of them.
func Room(added []Branch, given, path hierarchy.Path) error {
	n := 0
	for _, b := range added {
		if b.By != 0 && b.Path.Below(given) {
			n++
		}
	}
	if n >= Most {
		return fmt.Errorf("%s: %s has %d branches that were added, and that is the most", path, given, n)
	}
	return nil
}

// Fits holds the branch path, which a user added to the tree before, against what the
// policy says of base, up to which the user may divide the tree, and what it leaves to
// the others, who may share what nobody was guaranteed, in both directions. That rates
// and ceilings fit has been seen to: they do everywhere.
func Fits(before, t *hierarchy.Tree, base, path hierarchy.Path) error {
	if err := fits(before, t, base, path, ""); err != nil || t.Ingress == nil {
		return err
	}
	return fits(before.Ingress, t.Ingress, base, path, "ingress: ")
}

// fits is Fits for the tree of one direction, whose errors say which.
func fits(before, t *hierarchy.Tree, base, path hierarchy.Path, side string) error {
	of, b := t.Find(base), t.Find(path)
	if b.Prio < of.Prio {
		return fmt.Errorf("%s: %sprio %d comes before the prio %d of %s: write %d or more", path, side, b.Prio, of.Prio, base, of.Prio)
	}
	if b.Rate < least {
		return fmt.Errorf("%s: %srate %v is below %v, which is the least for a branch that users add", path, side, b.Rate, least)
	}
	for o := range t.All() {
		if !o.Leaf() || o.Rate >= least || !o.Path.Below(path.Parent()) {
			continue
		}
		if was := before.Find(o.Path); was == nil || was.Rate > o.Rate {
			return fmt.Errorf("%s: %s%v would be left for it, and users leave it %v at least", o.Path, side, o.Rate, least)
		}
	}
	return nil
}
