package tctest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vifshape/vifshape/tc/lab"
)

// Acting is the environment variable, as NAME=VALUE, that makes a test binary an actor,
// whose arguments are what it shall do. It is for what [Command] cannot start, such as a
// machine of package vm or a program in a branch.
const Acting = actEnv + "=1"

const actEnv = "VIFSHAPE_TEST_ACTOR"

// Verbs are what an actor can be told, by name. An actor is a process of the test
// binary: one of its own is needed wherever a cgroup or a namespace is entered for good.
// Its arguments are verbs with what they are told, and ";" between them. Two are known to
// every actor: "headless" does what follows with the first thread of the process ended,
// and "obey" does what lines of standard input say, and answers each by a line.
type Verbs map[string]func(Told) (answer string, err error)

// Told is what a verb is told.
type Told struct {
	Args []string
	Kept map[string]int // descriptors that outlive a verb, by the names that they were given
}

// Number is an argument that is one.
func (x Told) Number(i int) int {
	n, err := strconv.Atoi(x.Args[i])
	if err != nil {
		panic(err)
	}
	return n
}

// act is an actor, from its arguments to its exit status.
func (v Verbs) act(args []string) int {
	// What a verb does to the thread, the next one finds.
	runtime.LockOSThread()
	if err := v.script(args, map[string]int{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (v Verbs) script(args []string, kept map[string]int) error {
	for len(args) > 0 {
		told := args
		if i := slices.Index(args, ";"); i >= 0 {
			told, args = args[:i], args[i+1:]
		} else {
			args = nil
		}
		switch told[0] {
		case "headless":
			runtime.UnlockOSThread() // it may be on the first
			return Headless(func() error {
				runtime.LockOSThread()
				return v.script(args, kept)
			})
		case "obey":
			if err := v.obey(kept); err != nil {
				return err
			}
		default:
			answer, err := v.do(told, kept)
			if err != nil {
				return fmt.Errorf("%s: %w", told[0], err)
			}
			if answer != "" {
				fmt.Println(answer)
			}
		}
	}
	return nil
}

func (v Verbs) obey(kept map[string]int) error {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		answer, err := v.do(strings.Fields(in.Text()), kept)
		if err != nil {
			fmt.Printf("%s: %v\n", in.Text(), err)
			continue
		}
		fmt.Println("ok", answer)
	}
	return in.Err()
}

func (v Verbs) do(told []string, kept map[string]int) (string, error) {
	verb, ok := v[told[0]]
	if !ok {
		return "", errors.New("no such verb in this test binary")
	}
	return verb(Told{told[1:], kept})
}

// Command is a process of an actor. It is killed when the test ends; the caller starts
// it and waits for it.
func Command(t testing.TB, told ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, told...)
	cmd.Env = append(os.Environ(), Acting)
	cmd.Stderr = os.Stderr
	return cmd
}

// Actor is an actor that obeys. It ends with the test.
type Actor struct {
	*exec.Cmd
	t     testing.TB
	to    io.WriteCloser
	lines *bufio.Scanner
}

// Start starts an actor in a namespace. What it is told here comes before it obeys.
func Start(t testing.TB, ns *lab.NetNS, told ...string) *Actor {
	t.Helper()
	if len(told) > 0 {
		told = append(slices.Clip(told), ";")
	}
	return StartCommand(t, ns, Command(t, append(told, "obey")...))
}

// StartCommand starts one by a command that ends with that it obeys.
func StartCommand(t testing.TB, ns *lab.NetNS, cmd *exec.Cmd) *Actor {
	t.Helper()
	to, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	from, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		to.Close()
		_ = cmd.Wait() // it is killed by now
	})
	return &Actor{Cmd: cmd, t: t, to: to, lines: bufio.NewScanner(from)}
}

// Attach is an actor that somebody else has started, such as systemd, and that obeys what
// is written to to and answers where from is read. It has no Cmd.
func Attach(t testing.TB, to io.WriteCloser, from io.Reader) *Actor {
	return &Actor{t: t, to: to, lines: bufio.NewScanner(from)}
}

// Do has something done and returns what it answers.
func (a *Actor) Do(format string, args ...any) string {
	a.t.Helper()
	a.Begin(format, args...)
	return a.End()
}

// Begin has something begun, whose answer is for [Actor.End].
func (a *Actor) Begin(format string, args ...any) {
	a.t.Helper()
	if _, err := fmt.Fprintf(a.to, format+"\n", args...); err != nil {
		a.t.Fatal(err)
	}
}

// End waits for what was begun.
func (a *Actor) End() string {
	a.t.Helper()
	if !a.lines.Scan() {
		a.t.Fatalf("the actor went away: %v", a.lines.Err())
	}
	answer, ok := strings.CutPrefix(a.lines.Text(), "ok")
	if !ok {
		a.t.Fatalf("the actor: %s", a.lines.Text())
	}
	return strings.TrimSpace(answer)
}

// Dismiss ends it, which shall be no failure.
func (a *Actor) Dismiss() {
	a.t.Helper()
	a.to.Close()
	if err := a.Wait(); err != nil {
		a.t.Fatal(err)
	}
}

// PID is its process.
func (a *Actor) PID() int { return a.Process.Pid }
