package bind

import (
	"fmt"
	"strconv"
	"strings"
)

// Delegate is a user to whom a branch is delegated: one who may start programs in it
// and below, and divide it further, without being root. It is a name, "alice", or
// "uid:1000", which need not be in the user database. The zero value is nobody.
type Delegate string

const (
	uidPrefix = "uid:"
	noUID     = 1<<32 - 1 // INVALID_UID, include/linux/uidgid.h, v6.12
	// OverflowUID stands for all users that cannot be named in a user namespace
	// (DEFAULT_OVERFLOWUID, include/linux/highuid.h, v6.12): it is nobody's in
	// particular.
	OverflowUID = 65534
)

// ParseDelegate reads "alice" or "uid:1000". Root needs no delegation, and the
// [OverflowUID] gets none.
func ParseDelegate(s string) (Delegate, error) {
	number, isUID := strings.CutPrefix(s, uidPrefix)
	digits := strings.TrimLeft(number, "+-")
	allDigits := digits != "" && strings.Trim(digits, "0123456789") == ""
	switch {
	case s == "" || isUID && number == "":
		return "", fmt.Errorf("%q delegates to nobody: write a user's name, or \"uid:1000\"", s)
	case !isUID && allDigits:
		return "", fmt.Errorf("%q is a number: write \"uid:%s\"", s, digits)
	case isUID:
		return parseUID(s, number)
	case s == "root":
		return "", fmt.Errorf("root needs no delegation: root may do it anyway, and nobody else gets to be root by it")
	case strings.HasPrefix(s, "user:"):
		return "", fmt.Errorf("%q: a user is written as %q here", s, strings.TrimPrefix(s, "user:"))
	case strings.HasPrefix(s, "group:") || strings.HasPrefix(s, "gid:") || s[0] == '@' || s[0] == '%':
		return "", fmt.Errorf("%q: a branch is delegated to users, not to groups: write their names", s)
	case digits != number || len(s) > 256 || strings.ContainsAny(s, " /:,") || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return "", fmt.Errorf("%q is no user's name: write a name such as \"alice\", or \"uid:1000\"", s)
	}
	return Delegate(s), nil
}

func parseUID(s, number string) (Delegate, error) {
	uid, err := strconv.ParseUint(number, 10, 32)
	switch plain := strconv.FormatUint(uid, 10); {
	case err != nil || uid == noUID:
		return "", fmt.Errorf("%q: a user's number is from 1 to 4294967294", s)
	case uid == 0:
		return "", fmt.Errorf("%q is root, who needs no delegation", s)
	case uid == OverflowUID:
		return "", fmt.Errorf("%q stands for every user that a user namespace does not know: give the program a user of its own", s)
	case plain != number:
		return "", fmt.Errorf("%q has a zero in front of the number: write \"uid:%s\"", s, plain)
	}
	return Delegate(s), nil
}

// UID is the number of a delegate that was written as one; all others have to be
// looked up in the user database.
func (d Delegate) UID() (uid uint32, ok bool) {
	number, ok := strings.CutPrefix(string(d), uidPrefix)
	if !ok {
		return 0, false
	}
	v, err := strconv.ParseUint(number, 10, 32)
	return uint32(v), err == nil
}

// UnmarshalText implements encoding.TextUnmarshaler with ParseDelegate.
func (d *Delegate) UnmarshalText(t []byte) error {
	v, err := ParseDelegate(string(t))
	if err == nil {
		*d = v
	}
	return err
}
