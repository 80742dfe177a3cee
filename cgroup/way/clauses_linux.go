package way

import "strings"

// Clauses is several errors in one line.
type Clauses []error

func (c Clauses) Error() string {
	text := make([]string, len(c))
	for i, err := range c {
		text[i] = err.Error()
	}
	return strings.Join(text, "; ")
}

func (c Clauses) Unwrap() []error { return c }
