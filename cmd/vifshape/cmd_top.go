package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/colorprofile"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cmd/internal/explain"
	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/topview"
	"github.com/vifshape/vifshape/hierarchy"
)

type topOptions struct {
	once     bool
	interval time.Duration
	units    string
	unit     topview.Unit
}

func newTopCommand(e *env) *cobra.Command {
	var o topOptions
	c := &cobra.Command{
		Use:   "top [PATH]",
		Short: "Watch the tree live, full screen: who sends how much, who waits, who borrows",
		Long: `Top shows every branch, or those from PATH down, with what goes through it now and has
until now, the share of its ceiling as a bar, how long its queue makes packets wait, what that
drops, how much of it is borrowed, and how many processes are bound to it. What a branch shows
has that of the branches within in it. The rest is a branch like the others. Where what the
interface receives is shaped, too, key d turns to that; a wide terminal has both.

Enter opens a branch: what holds it up, as explain says it, and its processes with their
connections, those that send most first. c puts a limit on an interface, a limit or, in an
open branch, a process; m moves a process to another branch. Key ? lists all keys.

It takes a terminal, and no privileges but for who sends by a branch, to limit and to
move. Where the tree is so large that a look takes long, it looks less often: all looks
together take no more than a fortieth of a processor's time. NO_COLOR is heeded, and
where the locale is not UTF-8 bars are of ASCII.

  vifshape top
  vifshape top --once eth0/web        one sample, as text

EXIT STATUS
  0   ended by q, Ctrl-C or SIGTERM; with --once: done
  1   an error, or there is no such branch
  64  wrong flags or arguments`,
		Args: args(0, 1, "one path at most"),
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			if o.interval < 100*time.Millisecond {
				return usagef("--interval %v is too short: write 100ms or more, as 1s", o.interval)
			}
			unit, ok := topview.Units()[o.units]
			if !ok {
				return usagef("--units %s: write one of bit, byte, packets", o.units)
			}
			p, err := optionalPath(a)
			if err != nil {
				return err
			}
			o.unit = unit
			if o.once {
				return e.topOnce(c.Context(), p, o)
			}
			return e.top(c.Context(), p, o)
		}),
	}
	c.Flags().BoolVar(&o.once, "once", false, "print one sample, of an interval, and exit")
	c.Flags().DurationVar(&o.interval, "interval", time.Second, "look every `TIME`, or less often where the tree is large")
	c.Flags().StringVar(&o.units, "units", "bit", "show bit, byte or packets, as `UNIT`")
	return c
}

// topFeed looks again and again.
type topFeed struct {
	*observe.Sampler
	path     hierarchy.Path
	interval time.Duration
	seen     bool // something was there
}

// look is the next one.
func (f *topFeed) look(ctx context.Context) (l topview.Look, err error) {
	if l.Trees, err = f.Look(ctx); err != nil {
		return l, err
	}
	l.At, l.Every = time.Now(), f.Rest(f.interval)
	if f.path != "" {
		err = f.only(&l)
	}
	return l, err
}

// only leaves what is at the path and below it. Once that was there it is no error that it is not:
// it may come back.
func (f *topFeed) only(l *topview.Look) error {
	l.Trees = slices.DeleteFunc(l.Trees, func(t *observe.Live) bool { return t.Interface != f.path.Interface() })
	gone := fmt.Errorf("%s is not shaped by vifshape", f.path.Interface())
	if len(l.Trees) > 0 {
		t := l.Trees[0]
		var all []hierarchy.Path
		for _, b := range t.Branches {
			all = append(all, b.Path)
		}
		t.Branches = slices.DeleteFunc(t.Branches, func(b observe.LiveBranch) bool { return !b.Path.Below(f.path) })
		if len(t.Branches) > 0 || t.Err != nil {
			f.seen = f.seen || len(t.Branches) > 0
			return nil
		}
		gone = hierarchy.NoBranch(f.path, all)
	}
	if !f.seen {
		return gone
	}
	l.Trees = []*observe.Live{{Interface: f.path.Interface(), Err: gone}}
	return nil
}

func (e *env) topOnce(ctx context.Context, p hierarchy.Path, o topOptions) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	f := &topFeed{Sampler: observe.NewSampler(m), path: p, interval: o.interval}
	defer f.Close()
	l, err := f.look(ctx)
	if err != nil {
		return err
	}
	if len(l.Trees) == 0 {
		e.notef("no interface is shaped by vifshape in this network namespace")
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(o.interval):
	}
	if l, err = f.look(ctx); err != nil {
		return err
	}
	if l.Processes, err = observe.Processes(ctx, m); err != nil {
		return err
	}
	e.printf("%s", topview.Table(l, topview.Style{ASCII: !utf8Locale()}, o.unit))
	return nil
}

// utf8Locale says whether who reads the text takes more than ASCII.
func utf8Locale() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := os.Getenv(name); v != "" {
			v = strings.ToLower(v)
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}

// isTerminal says whether a file is one.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func (e *env) top(ctx context.Context, p hierarchy.Path, o topOptions) error {
	if !isTerminal(os.Stdin) || !isTerminal(os.Stdout) || os.Getenv("TERM") == "dumb" {
		return usagef("top takes a terminal: write --once for a sample as text")
	}
	debug.SetGCPercent(100) // it stays
	ctx, end := context.WithCancel(ctx)
	style := topview.Style{Terminal: true, Colour: os.Getenv("NO_COLOR") == "", ASCII: !utf8Locale()}
	profile := colorprofile.ANSI
	if !style.Colour {
		profile = colorprofile.ASCII
	}
	s := &topScreen{moved: make(chan struct{}, 1), Model: topview.New(style, o.unit), e: e, ctx: ctx, shut: func() {}}
	// The program asks a tmux that it runs in how many colours that has, by starting it, unless
	// it is told.
	program := tea.NewProgram(s, tea.WithContext(ctx), tea.WithoutSignalHandler(), tea.WithColorProfile(profile), tea.WithFPS(30))
	s.send = program.Send
	work := make(chan error, 2)
	for _, do := range []func() error{
		func() error { return e.feedTop(ctx, p, o, program.Send) },
		func() error { return e.countTop(ctx, s.moved, program.Send) },
	} {
		go func() {
			err := do()
			work <- err
			if err != nil {
				program.Quit()
			}
		}()
	}
	_, err := program.Run()
	end()
	for range cap(work) {
		if failed := <-work; failed != nil && !errors.Is(failed, context.Canceled) {
			return failed
		}
	}
	if errors.Is(err, tea.ErrProgramKilled) && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// feedTop looks until the context ends.
func (e *env) feedTop(ctx context.Context, p hierarchy.Path, o topOptions, send func(tea.Msg)) error {
	m, err := shaper.Open(e.runDir, func(r shaper.Remark) { send(topTold(r.Text)) })
	if err != nil {
		return err
	}
	defer m.Close()
	f := &topFeed{Sampler: observe.NewSampler(m), path: p, interval: o.interval}
	defer f.Close()
	for {
		l, err := f.look(ctx)
		if err != nil {
			return err
		}
		send(l)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(f.Rest(o.interval)):
		}
	}
}

// countTop counts processes now and then, and when some were moved.
func (e *env) countTop(ctx context.Context, moved <-chan struct{}, send func(tea.Msg)) error {
	m, err := shaper.Open(e.runDir, func(shaper.Remark) {})
	if err != nil {
		return err
	}
	defer m.Close()
	for {
		began := time.Now()
		if all, err := observe.Processes(ctx, m); err == nil {
			send(topCounted(all))
		} else if ctx.Err() == nil {
			send(topTold("processes could not be counted: " + err.Error()))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-moved:
		case <-time.After(max(2*time.Second, 100*time.Since(began))):
		}
	}
}

// topCounted are the processes of branches.
type topCounted map[hierarchy.Path]int

// topTold is something to be said, and topDone what became of a change.
type (
	topTold string
	topDone string
)

// topOpened is what was seen of an open branch.
type topOpened struct {
	path hierarchy.Path
	seen *explain.Evidence
	err  error
}

// topScreen is the screen on a terminal.
type topScreen struct {
	*topview.Model
	moved chan struct{} // processes were, or may have been
	e     *env
	ctx   context.Context
	send  func(tea.Msg)
	shut  func() // ends the look at an open branch
}

// Init implements [tea.Model].
func (s *topScreen) Init() tea.Cmd { return nil }

// View implements [tea.Model].
func (s *topScreen) View() tea.View {
	v := tea.NewView(strings.Join(s.Lines(), "\n"))
	v.AltScreen = true
	return v
}

// Update implements [tea.Model].
func (s *topScreen) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		s.Resize(msg.Width, msg.Height)
	case topview.Look:
		s.Show(msg)
	case topOpened:
		s.Opened(msg.path, msg.seen, msg.err)
	case topTold:
		s.Tell(string(msg))
	case topDone:
		select {
		case s.moved <- struct{}{}:
		default:
		}
		s.Tell(string(msg))
	case topCounted:
		s.Count(msg)
	case tea.PasteMsg:
		s.Paste(msg.Content)
	case tea.KeyPressMsg:
		if msg.String() == "ctrl+z" {
			return s, tea.Suspend
		}
		return s, s.do(s.Key(msg.String()))
	}
	return s, nil
}

// do is what a key asks for.
func (s *topScreen) do(a topview.Action) tea.Cmd {
	switch {
	case a.Quit:
		return tea.Quit
	case a.Shut:
		s.shut()
	case a.Open != "":
		ctx, shut := context.WithCancel(s.ctx)
		s.shut = shut
		go s.e.watchOpened(ctx, a.Open, s.send)
	case a.Cap != nil:
		s.Tell("limiting " + a.Cap.What + " ...")
		return func() tea.Msg {
			return topTold(s.e.quietly(func(e *env) (string, error) { return e.capTop(s.ctx, a.Cap) }))
		}
	case a.Move != nil:
		s.Tell(fmt.Sprintf("moving %d to %s ...", a.Move.PID, a.Move.To))
		return func() tea.Msg {
			return topTold(s.e.quietly(func(e *env) (string, error) { return e.moveTop(s.ctx, a.Move) }))
		}
	}
	return nil
}

// watchOpened looks at who sends by a branch, until the context ends. What it costs besides
// waiting is a twentieth of the time at most.
func (e *env) watchOpened(ctx context.Context, path hierarchy.Path, send func(tea.Msg)) {
	const took, samples = time.Second, 4
	m, err := shaper.Open(e.runDir, func(shaper.Remark) {})
	if err != nil {
		send(topOpened{path, nil, err})
		return
	}
	defer m.Close()
	for {
		began := time.Now()
		seen, err := explain.Look(ctx, m, path.Interface(), explain.Subject{Path: path}, took, samples)
		if ctx.Err() != nil {
			return
		}
		send(topOpened{path, seen, err})
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(20*(time.Since(began)-took)-took, took)): // at once where there is nothing to look at
		}
	}
}

// quietly does what a command does, and is what that would print, in a line, or what is said
// where it prints nothing.
func (e *env) quietly(do func(*env) (string, error)) string {
	var said bytes.Buffer
	q := &env{stdout: &bytes.Buffer{}, stderr: &said, runDir: e.runDir, args: []string{"top"}}
	done, err := do(q)
	if err != nil {
		q.report(err)
	}
	text := strings.NewReplacer("vifshape: ", "", "error: ", "").Replace(strings.TrimSpace(said.String()))
	if text == "" {
		return done
	}
	return text
}

// capTop is limit, or unlimit where there is nothing to limit to.
func (e *env) capTop(ctx context.Context, c *topview.Cap) (string, error) {
	if c.Up == "" && c.Down == "" {
		return c.What + " is limited no more", e.unlimit(ctx, []string{c.What})
	}
	l := shaper.Limit{On: c.On}
	for _, a := range []struct {
		text string
		to   *hierarchy.Amount
	}{{c.Up, &l.Ceil}, {c.Down, &l.Down}} {
		if a.text == "" {
			continue
		}
		b, err := hierarchy.ParseBandwidth(a.text)
		if err != nil {
			return "", err
		}
		*a.to = hierarchy.Absolute(b)
	}
	return c.What + " is limited", e.limit(ctx, c.What, l)
}

// moveTop is attach.
func (e *env) moveTop(ctx context.Context, m *topview.Move) (string, error) {
	return fmt.Sprintf("process %d is in %s", m.PID, m.To), e.attach(ctx, carriedBy(m.To), []int{m.PID}, false)
}
