package hierarchy

// Action is what a step does.
type Action uint8

// The actions. A plan holds no step for what stays as it is.
const (
	NoOp Action = iota
	Create
	Change
	Delete
)

var actions = [...]string{"no-op", "create", "change", "delete"}

// String is the action in a word.
func (a Action) String() string {
	if int(a) < len(actions) {
		return actions[a]
	}
	return "unknown"
}

// Symbol is the sign in front of a line of a diff: + ~ - or a space.
func (a Action) Symbol() string { return [...]string{" ", "+", "~", "-"}[a] }

// MarshalText implements encoding.TextMarshaler with the form of String.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// Item is a thing of the kernel that a step acts on: *Root, *Class, *Leaf,
// *Hook or *Bound.
type Item interface{ item() }

func (*Root) item()  {}
func (*Class) item() {}
func (*Leaf) item()  {}
func (*Hook) item()  {}
func (*Bound) item() {}

// Step is one change. Old is nil for Create, New for Delete; otherwise both are
// of the same type.
type Step struct {
	Action   Action
	Old, New Item
}

// Item is what the step acts on: New, or Old when it deletes.
func (s Step) Item() Item {
	if s.New != nil {
		return s.New
	}
	return s.Old
}

// Plan is an ordered list of steps that turns one state into another. The order
// keeps every moment of the way sound: children's guarantees fit their
// parent's, no binding points at a class that is not there, and a class goes
// only when nothing points at it any more.
type Plan struct {
	Interface string
	Steps     []Step
}

// Empty says whether there is nothing to do.
func (p Plan) Empty() bool { return len(p.Steps) == 0 }
