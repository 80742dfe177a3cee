package hierarchy

import "github.com/vifshape/vifshape/hierarchy/match"

// Matched is a branch with matches as a classifier goes by them: of packets that have the
// class of one of From, and that fit, it makes ones of Class.
type Matched struct {
	ID    ClassID       `json:"classid"`
	Path  Path          `json:"path,omitempty"`
	Class ClassID       `json:"leaf"` // of the branch's entry
	From  []ClassID     `json:"from"` // of the entries of the branches above, up to the next that has matches
	Match []match.Match `json:"match"`
}

// Matched are the branches that have matches. What is decided by them, again for each
// class that a packet gets until none fits, is what [Branch.Decide] says: of those that have
// a class in From, the most specific match decides.
func (t *Tree) Matched() []Matched { return t.Root.below(nil, nil) }

func (b *Branch) below(from []ClassID, to []Matched) []Matched {
	entry := b.Entry()
	if len(b.Match) > 0 && entry != nil { // every branch with matches has one
		to = append(to, Matched{b.ID, b.Path, entry.ID, from, b.Match})
		from = nil
	}
	if entry != nil {
		from = append(from[:len(from):len(from)], entry.ID)
	}
	for _, c := range b.Children {
		to = c.below(from, to)
	}
	return to
}
