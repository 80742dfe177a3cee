package cgroup

import "strings"

// clauses is several errors in one line.
type clauses []error

func (c clauses) Error() string {
	text := make([]string, len(c))
	for i, err := range c {
		text[i] = err.Error()
	}
	return strings.Join(text, "; ")
}

func (c clauses) Unwrap() []error { return c }
