package hierarchy

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"

	"github.com/vifshape/vifshape/hierarchy/match"
)

// Matched is a branch with matches as a classifier goes by them: of packets that have the
// class of one of From, and that fit, it makes ones of Class.
type Matched struct {
	ID    ClassID       `json:"classid"`
	Path  Path          `json:"path,omitempty"`
	Class ClassID       `json:"leaf"`           // of the branch's entry
	From  []ClassID     `json:"from,omitempty"` // of the entries of the branches above, up to the next that has matches
	Match []match.Match `json:"match,omitempty"`
	// Received says that packets that are received are held against the matches, too.
	Received bool `json:"received,omitempty"`
	// Digest tells these values from others, but for the path.
	Digest Digest `json:"digest"`
}

// Digest is never 0.
type Digest uint64

// String is the number in hexadecimal.
func (d Digest) String() string { return fmt.Sprintf("%016x", uint64(d)) }

// MarshalText implements encoding.TextMarshaler with the form of String.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// digest is that of the values of a branch.
func (m *Matched) digest() Digest {
	x := *m
	x.Path, x.Digest = "", 0
	b, _ := json.Marshal(x) // these values all have texts
	sum := sha256.Sum256(b)
	return Digest(binary.BigEndian.Uint64(sum[:]) | 1)
}

// Matched are the branches that have matches. What is decided by them, again for each
// class that a packet gets until none fits, is what [Branch.Decide] says: of those that have
// a class in From, the most specific match decides.
func (t *Tree) Matched() []Matched { return t.Root.below(t.Ingress != nil, nil, nil) }

func (b *Branch) below(received bool, from []ClassID, to []Matched) []Matched {
	entry := b.Entry()
	if len(b.Match) > 0 && entry != nil { // every branch with matches has one
		m := Matched{ID: b.ID, Path: b.Path, Class: entry.ID, From: from, Match: b.Match, Received: received}
		m.Digest = m.digest()
		to = append(to, m)
		from = nil
	}
	if entry != nil {
		from = append(from[:len(from):len(from)], entry.ID)
	}
	for _, c := range b.Children {
		to = c.below(received, from, to)
	}
	return to
}
