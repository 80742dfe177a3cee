package shaper

import (
	"fmt"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/policy"
)

// Level says how much a remark matters.
type Level uint8

// The levels.
const (
	Note    Level = iota // good to know
	Warning              // not what was meant, perhaps
	Hint                 // a way on from the warning before it
)

// Remark is something to be said besides the result. Who asked renders it.
type Remark struct {
	Level Level
	About hierarchy.Path // the branch or interface; empty: none in particular
	Text  string         // a sentence that names what it is about
	At    *policy.Error  // a place in a policy, with Text and more; nil: none
}

// TellPlaced tells the warnings of a policy.
func (m *Machine) TellPlaced(all policy.Errors) {
	for i := range all {
		m.tell(Remark{Level: Warning, About: all[i].Path, Text: all[i].Msg, At: &all[i]})
	}
}

// Notef tells a note.
func (m *Machine) Notef(about hierarchy.Path, format string, args ...any) {
	m.tell(Remark{Level: Note, About: about, Text: fmt.Sprintf(format, args...)})
}

// Warnf tells a warning.
func (m *Machine) Warnf(about hierarchy.Path, format string, args ...any) {
	m.tell(Remark{Level: Warning, About: about, Text: fmt.Sprintf(format, args...)})
}

// Hintf tells a hint.
func (m *Machine) Hintf(about hierarchy.Path, format string, args ...any) {
	m.tell(Remark{Level: Hint, About: about, Text: fmt.Sprintf(format, args...)})
}
