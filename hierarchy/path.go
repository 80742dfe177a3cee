package hierarchy

import "strings"

// Path is the name of a branch everywhere: the interface, then the branches
// down to it, joined by slashes: "eth0/web/api". The path of an interface's own
// node is the interface name alone. The zero value names nothing.
type Path string

// Join is the path of the child called name below p.
func (p Path) Join(name string) Path { return p + "/" + Path(name) }

// Interface is the first part of the path.
func (p Path) Interface() string {
	i, _, _ := strings.Cut(string(p), "/")
	return i
}

// Base is the last part of the path.
func (p Path) Base() string { return string(p[strings.LastIndexByte(string(p), '/')+1:]) }

// Parent is the path without its last part, empty for an interface.
func (p Path) Parent() Path {
	i := strings.LastIndexByte(string(p), '/')
	if i < 0 {
		return ""
	}
	return p[:i]
}

// Below says whether p is q or lies below it.
func (p Path) Below(q Path) bool {
	return p == q || strings.HasPrefix(string(p), string(q)+"/")
}
