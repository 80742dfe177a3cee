package tctest_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

func TestMain(m *testing.M) {
	tctest.Main(m, tctest.Verbs{
		"say": func(x tctest.Told) (string, error) { return fmt.Sprint(x.Args), nil },
		"sleep": func(x tctest.Told) (string, error) {
			d, err := time.ParseDuration(x.Args[0])
			time.Sleep(d)
			return "", err
		},
		"dead": func(tctest.Told) (string, error) { // whether the first thread is
			b, err := os.ReadFile("/proc/self/stat")
			return fmt.Sprint(strings.Contains(string(b), ") Z ")), err
		},
	})
}

// recorder is a testing.TB that only remembers how a test would end.
type recorder struct {
	testing.TB
	name, end string
}

func (r *recorder) Helper()                           {}
func (r *recorder) Name() string                      { return r.name }
func (r *recorder) Fatalf(format string, args ...any) { r.end = "fail" }

// Skipf is not the first to be called where the real Fatalf does not return.
func (r *recorder) Skipf(format string, args ...any) {
	if r.end == "" {
		r.end = "skip: " + fmt.Sprintf(format, args...)
	}
}

func TestRequire(t *testing.T) {
	for _, tt := range []struct {
		name, noSkip, skipOK, test string
		ok                         bool
		want                       string
	}{
		{name: "met", ok: true, noSkip: "1", want: ""},
		{name: "skips", want: "skip: needs qdisc cake"},
		{name: "fails", noSkip: "1", want: "fail"},
		{name: "allowed by reason", noSkip: "1", skipOK: "root, qdisc cake", want: "skip: needs qdisc cake"},
		{name: "allowed by name", noSkip: "1", skipOK: "TestKernel*", test: "TestKernelLeaf", want: "skip: needs qdisc cake"},
		{name: "allowed by name of the whole", noSkip: "1", skipOK: "TestKernel*", test: "TestKernelLeaf/cake", want: "skip: needs qdisc cake"},
		{name: "another allowed", noSkip: "1", skipOK: "TestOther,qdisc sfq,,", test: "TestKernelLeaf", want: "fail"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("VIFSHAPE_NO_SKIP", tt.noSkip)
			t.Setenv("VIFSHAPE_SKIP_OK", tt.skipOK)
			r := &recorder{name: tt.test}
			tctest.Require(r, tt.ok, "qdisc cake")
			if r.end != tt.want {
				t.Errorf("ended with %q, want %q", r.end, tt.want)
			}
		})
	}
}

func TestKernelRequireKinds(t *testing.T) {
	tctest.RequireRoot(t)
	t.Setenv("VIFSHAPE_NO_SKIP", "")
	for _, tt := range []struct {
		what string
		ask  func(testing.TB)
		want string
	}{
		{"htb", func(t testing.TB) { tctest.RequireQdisc(t, "htb") }, ""},
		{"tbf", func(t testing.TB) { tctest.RequireQdisc(t, "tbf") }, ""},
		{"no qdisc", func(t testing.TB) { tctest.RequireQdisc(t, "nosuch") }, "skip: needs qdisc nosuch"},
		{"ifb", func(t testing.TB) { tctest.RequireLink(t, "ifb") }, ""},
		{"veth", func(t testing.TB) { tctest.RequireLink(t, "veth") }, ""},
		{"no link", func(t testing.TB) { tctest.RequireLink(t, "nosuch") }, "skip: needs interface kind nosuch"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			r := &recorder{TB: t, name: t.Name()}
			tt.ask(r)
			if r.end != tt.want {
				t.Errorf("ended with %q, want %q", r.end, tt.want)
			}
		})
	}
}

func TestKernelNew(t *testing.T) {
	p := tctest.New(t, lab.PairConfig{})
	type qdisc struct{ Kind, Dev string }
	got := tctest.TCJSON[qdisc](t, p.Near, "qdisc", "show", "dev", "lo")
	if d := cmp.Diff([]qdisc{{Kind: "noqueue"}}, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestKernelTCClasses(t *testing.T) {
	p := tctest.New(t, lab.PairConfig{})
	for _, args := range []string{
		"qdisc add dev eth0 root handle 1: htb",
		"class add dev eth0 parent 1: classid 1:1 htb rate 10mbit burst 15k quantum 1514",
		"class add dev eth0 parent 1:1 classid 1:a htb rate 5mbit ceil 10mbit burst 15k cburst 15k quantum 1514 prio 3",
		"qdisc add dev eth0 parent 1:a handle a: pfifo limit 7",
	} {
		tctest.TC(t, p.Near, strings.Fields(args)...)
	}
	got := tctest.TCClasses(t, p.Near, p.Dev)
	slices.SortFunc(got, func(a, b tctest.TCClass) int { return strings.Compare(a.ID, b.ID) })
	want := []tctest.TCClass{
		{ID: "1:1", Parent: "root", Options: map[string]string{"rate": "10Mbit", "ceil": "10Mbit"}},
		{ID: "1:a", Parent: "1:1", Leaf: "a:", Options: map[string]string{"prio": "3", "quantum": "1514", "rate": "5Mbit", "ceil": "10Mbit"}},
	}
	for i := range got {
		for k := range got[i].Options {
			if !slices.Contains([]string{"prio", "quantum", "rate", "ceil"}, k) {
				delete(got[i].Options, k)
			}
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// outlive is cmd without the rule that it ends with the test.
func outlive(cmd *exec.Cmd) *exec.Cmd { return &exec.Cmd{Path: cmd.Path, Args: cmd.Args, Env: cmd.Env} }

func TestKernelCgroup(t *testing.T) {
	for name, newCgroup := range map[string]func(testing.TB) string{"v2": tctest.Cgroup, "net_cls": tctest.NetCls} {
		t.Run(name, func(t *testing.T) {
			var dir string
			ended := make(chan error, 1)
			t.Run("with a process", func(t *testing.T) {
				dir = newCgroup(t)
				below := filepath.Join(dir, "a", "b")
				if err := os.MkdirAll(below, 0o755); err != nil {
					t.Fatal(err)
				}
				cmd := outlive(tctest.Command(t, "sleep", "1m"))
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(below, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
					t.Fatal(err)
				}
				go func() { ended <- cmd.Wait() }()
				if name == "net_cls" {
					if _, err := os.Stat(filepath.Join(dir, "net_cls.classid")); err != nil {
						t.Error(err)
					}
				}
			})
			if err := <-ended; err == nil || err.Error() != "signal: killed" {
				t.Errorf("the process ended with %v, not by the clean-up", err)
			}
			if err := unix.Access(dir, unix.F_OK); err != unix.ENOENT {
				t.Errorf("%s is still there: %v", dir, err)
			}
		})
	}
}

func TestCommand(t *testing.T) {
	out, err := tctest.Command(t, "say", "a", "b", ";", "dead", ";", "headless", ";", "say", "c", ";", "dead").Output()
	if err != nil || string(out) != "[a b]\nfalse\n[c]\ntrue\n" {
		t.Errorf("%q, %v", out, err)
	}
	unknown := tctest.Command(t, "say", "a", ";", "nosuch", ";", "say", "b")
	unknown.Stderr = nil
	var e *exec.ExitError
	if out, err := unknown.Output(); string(out) != "[a]\n" || !errors.As(err, &e) || string(e.Stderr) != "nosuch: no such verb in this test binary\n" {
		t.Errorf("an unknown verb: %q, %v", out, err)
	}
}

// TestActor: it does one thing after the other, and what fails does not end it.
func TestActor(t *testing.T) {
	a := tctest.Start(t, tctest.NetNS(t), "headless")
	if got := a.Do("say %s", "a b"); got != "[a b]" {
		t.Errorf("it says %q", got)
	}
	if got := a.Do("dead"); got != "true" {
		t.Errorf("that its first thread has ended is %s", got)
	}
	a.Dismiss()
	cmd := tctest.Command(t, "obey")
	cmd.Stdin = strings.NewReader("say a\nnosuch\nsay b\n")
	if out, err := cmd.Output(); err != nil || string(out) != "ok [a]\nnosuch: no such verb in this test binary\nok [b]\n" {
		t.Errorf("%q, %v", out, err)
	}
}

// TestLeak is run by TestMainFindsLeaks, as a test that forgets something.
func TestLeak(t *testing.T) {
	switch os.Getenv("VIFSHAPE_LEAK") {
	case "":
		return
	case "namespace":
		if _, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY, 0); err != nil {
			t.Fatal(err)
		}
	case "socket":
		if _, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0); err != nil {
			t.Fatal(err)
		}
	case "process":
		if err := outlive(tctest.Command(t, "sleep", "4s")).Start(); err != nil {
			t.Fatal(err)
		}
	case "cgroup":
		if err := os.Mkdir(filepath.Join(tctest.Cgroup2Mount(t), tctest.Name()), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMainFindsLeaks(t *testing.T) {
	tctest.RequireRoot(t)
	for leak, want := range map[string]string{
		"namespace": "open network namespace",
		"socket":    "open socket",
		"process":   "process",
		"cgroup":    "vifshape-",
	} {
		t.Run(leak, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestLeak$")
			cmd.Env = append(os.Environ(), "VIFSHAPE_LEAK="+leak)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "left behind by a test: ") || !strings.Contains(string(out), want) {
				t.Errorf("%v\n%s", err, out)
			}
			for line := range strings.Lines(string(out)) {
				if _, dir, ok := strings.Cut(strings.TrimSpace(line), "left behind by a test: /"); ok {
					if err := os.Remove("/" + dir); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
}
