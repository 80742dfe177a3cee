package hierarchy

// Problem is one mistake in a specification.
type Problem struct {
	Path    Path   // the branch
	Key     string // of the branch, such as "ceil" or "qdisc.limit"; empty: the branch itself
	Index   int    // the element of a list, such as bind; -1 where the key is no list
	Text    string // what is wrong, without the path: "ceil 5mbit is below rate 10mbit"
	Hint    string // what to write instead; may be empty
	Warning bool   // the policy can be used as it is
}
