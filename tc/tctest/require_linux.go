package tctest

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/lab"
)

// Require skips the test unless ok holds. The reason is what is missing, as in
// "qdisc cake" or "root". It fails the test instead when skips are not allowed;
// see the package's documentation.
func Require(t testing.TB, ok bool, reason string) {
	t.Helper()
	if ok {
		return
	}
	if os.Getenv("VIFSHAPE_NO_SKIP") != "" && !skipAllowed(os.Getenv("VIFSHAPE_SKIP_OK"), t.Name(), reason) {
		t.Fatalf("needs %s, and VIFSHAPE_NO_SKIP is set: provide it, or allow the skip in VIFSHAPE_SKIP_OK", reason)
	}
	t.Skipf("needs %s", reason)
}

// skipAllowed says whether one of the comma-separated patterns in list fits the
// test, the top-level test it belongs to, or the reason.
func skipAllowed(list, test, reason string) bool {
	top, _, _ := strings.Cut(test, "/")
	for _, p := range strings.Split(list, ",") {
		if p = strings.TrimSpace(p); p == "" {
			continue
		}
		for _, name := range []string{test, top} {
			if ok, err := path.Match(p, name); err == nil && ok {
				return true
			}
		}
		if strings.Contains(reason, p) {
			return true
		}
	}
	return false
}

// RequireRoot skips the test unless it runs as root.
func RequireRoot(t testing.TB) {
	t.Helper()
	Require(t, os.Geteuid() == 0, "root")
}

// RequireProgram skips the test unless a program is installed, and returns its
// path.
func RequireProgram(t testing.TB, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	Require(t, err == nil, "program "+name)
	return p
}

// SkippedWithout runs a test of the running binary, "TestX" or "TestX/sub", where
// programs are not installed, and holds that it is skipped with a reason: a machine
// without them has a green run, one that may not skip has not. env is added to the
// environment.
func SkippedWithout(t *testing.T, programs []string, test, reason string, env ...string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, from := range filepath.SplitList(os.Getenv("PATH")) {
		files, _ := os.ReadDir(from) // a part of PATH need not be there
		for _, f := range files {
			if slices.Contains(programs, f.Name()) {
				continue
			}
			if err := os.Symlink(filepath.Join(from, f.Name()), filepath.Join(dir, f.Name())); err != nil && !errors.Is(err, os.ErrExist) {
				t.Fatal(err)
			}
		}
	}
	run := "-test.run=^" + strings.ReplaceAll(regexp.QuoteMeta(test), "/", "$/^") + "$"
	for noSkip, end := range map[string]string{"": "SKIP", "1": "FAIL"} {
		cmd := exec.CommandContext(t.Context(), self, "-test.v", run)
		cmd.Env = append(os.Environ(), append(env, "PATH="+dir, "VIFSHAPE_SKIP_OK=", "VIFSHAPE_NO_SKIP="+noSkip)...)
		out, err := cmd.CombinedOutput()
		if (err != nil) != (end == "FAIL") || !strings.Contains(string(out), "--- "+end+": "+test+" ") || !strings.Contains(string(out), "needs "+reason) {
			t.Errorf("%s without %q, VIFSHAPE_NO_SKIP=%q: not %s for %q (%v)\n%s", test, programs, noSkip, end, reason, err, out)
		}
	}
}

// RequireQdisc skips the test unless the kernel has a kind of queueing
// discipline. It needs root to ask.
func RequireQdisc(t testing.TB, kind string) {
	t.Helper()
	Require(t, HasQdisc(t, kind), "qdisc "+kind)
}

// HasQdisc says whether the kernel has a kind of queueing discipline. It skips the
// test without root, which it takes to ask.
func HasQdisc(t testing.TB, kind string) bool {
	t.Helper()
	RequireRoot(t)
	return probe(t, func(c *netlink.Conn) error {
		msg := make([]byte, unix.SizeofIfInfomsg+4) // struct tcmsg
		binary.NativeEndian.PutUint32(msg[4:], 1)   // loopback
		binary.NativeEndian.PutUint32(msg[12:], 0xffffffff)
		// The kind is looked up before its options are read
		// (qdisc_create, net/sched/sch_api.c, v6.12): ENOENT is the
		// answer to an unknown kind, and to nothing else here.
		err := request(c, unix.RTM_NEWQDISC, msg, func(ae *netlink.AttributeEncoder) { ae.String(unix.TCA_KIND, kind) })
		if errors.Is(err, unix.ENOENT) {
			return err
		}
		return nil
	})
}

// RequireLink skips the test unless the kernel has a kind of interface, named
// as rtnetlink does ("ifb", "bond"). It needs root to ask.
func RequireLink(t testing.TB, kind string) {
	t.Helper()
	Require(t, HasLink(t, kind), "interface kind "+kind)
}

// HasLink says whether the kernel has a kind of interface. It skips the test
// without root, which it takes to ask.
func HasLink(t testing.TB, kind string) bool {
	t.Helper()
	RequireRoot(t)
	return probe(t, func(c *netlink.Conn) error {
		err := request(c, unix.RTM_NEWLINK, make([]byte, unix.SizeofIfInfomsg), func(ae *netlink.AttributeEncoder) {
			ae.String(unix.IFLA_IFNAME, "probe0")
			ae.Nested(unix.IFLA_LINKINFO, func(ae *netlink.AttributeEncoder) error {
				ae.String(unix.IFLA_INFO_KIND, kind)
				return nil
			})
		})
		// Known kinds may want more than a name, or exist once per
		// namespace; an unknown one is EOPNOTSUPP (rtnl_newlink,
		// net/core/rtnetlink.c, v6.12). Kinds made through a character
		// device answer the same to this request.
		if errors.Is(err, unix.EOPNOTSUPP) && kind != "tun" {
			return err
		}
		return nil
	})
}

// probe asks in a namespace of its own and says whether the answer was yes.
func probe(t testing.TB, ask func(*netlink.Conn) error) bool {
	t.Helper()
	n, err := lab.NewNetNS()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	c, err := n.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return ask(c) == nil
}

func request(c *netlink.Conn, typ netlink.HeaderType, msg []byte, attrs func(*netlink.AttributeEncoder)) error {
	ae := netlink.NewAttributeEncoder()
	attrs(ae)
	b, err := ae.Encode()
	if err != nil {
		return err
	}
	_, err = c.Execute(netlink.Message{
		Header: netlink.Header{Type: typ, Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Excl},
		Data:   append(msg, b...),
	})
	return err
}
