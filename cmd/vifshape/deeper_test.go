package main

import "testing"

// TestDeeper: of the targets that hold a process the classifier takes the deepest
// cgroup, and a user after all of them.
func TestDeeper(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"cgroup:/a/b", "cgroup:/a", true},
		{"cgroup:/a", "cgroup:/a/b", false},
		{"cgroup:/a", "", true},
		{"uid:1000", "", true},
		{"uid:1000", "cgroup:/", false},
		{"cgroup:/", "uid:1000", true},
	} {
		if got := deeper(c.a, c.b); got != c.want {
			t.Errorf("deeper(%q, %q) = %v", c.a, c.b, got)
		}
	}
}
