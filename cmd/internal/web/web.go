// Package web shows a browser what trees do, live, and what a policy would change. It is one
// page that is a part of the program, and asks nobody else for anything. It changes nothing by
// itself: who makes a server may give it what does, for who has the code of that server.
package web

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/vifshape/vifshape/cmd/internal/explain"
	"github.com/vifshape/vifshape/cmd/internal/listen"
	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
)

const (
	// A client may take readTime for its request, and writeTime for each part of the answer.
	readTime  = 10 * time.Second
	writeTime = 30 * time.Second
	idleTime  = 2 * time.Minute
	// Pages that are told what happens, at once. More are refused.
	mostStreams = 16
	// Questions at once that make the server work: one is answered, the others wait. More are
	// refused.
	mostQuestions = 4
	// Connections at once: a browser has six to one place. More wait to be accepted.
	mostConnections = 128

	// eachLook is the time between two looks while somebody has the page open, and seldom while
	// nobody has, so that who opens it sees what was.
	eachLook = time.Second
	seldom   = 5 * time.Second
	// mostRest is how long a page stands still at most, where looks take long.
	mostRest = 10 * time.Second
	// explained is how long it is looked at what holds a branch up.
	explained = 2 * time.Second
)

// Config is how a server works.
type Config struct {
	RunDir  string
	Version string // of the program
	// Warn tells what does not end it, by one goroutine at a time.
	Warn func(text string)
	// Plan puts into words what a policy would change.
	Plan func(ctx context.Context, policy string) Answer
	// Write is what the page may do besides; nil: it changes nothing.
	Write *Writing
}

// Answer is what there is to say of a policy.
type Answer struct {
	Text  string `json:"text"`
	Wrong bool   `json:"wrong,omitempty"` // it is what is wrong with it
	Plan  string `json:"plan,omitempty"`  // tells apart what is planned; empty: there is nothing to apply
}

// Server shows the network namespace that it was made in.
type Server struct {
	cfg   Config
	boot  string // which server it is: numbers of ticks and rows are its own
	token string // by which a browser that comes by a port gets the session
	// session is what it has from then on.
	session   string
	questions chan struct{}
	turn      chan struct{} // of who asks something that makes the server work
	code      *code
	writing   chan struct{} // the turn of who writes

	telling   sync.Mutex
	attending sync.Mutex // held before mu

	mu      sync.Mutex // of what follows
	history history
	rows    rows
	layout  []byte        // as it is told; empty: nothing was seen yet
	laid    uint64        // how often that has changed
	looked  chan struct{} // closed when something was added
	streams int
	wanted  chan struct{} // has room: somebody opens the page
	waits   waits
}

// New is a server. Nothing is looked at yet.
func New(cfg Config) *Server {
	return &Server{
		cfg: cfg, boot: rand.Text()[:8], token: rand.Text(), session: rand.Text(),
		questions: make(chan struct{}, mostQuestions), turn: make(chan struct{}, 1),
		code: newCode(), writing: make(chan struct{}, 1),
		history: history{most: mostUses}, rows: rows{known: map[key]*known{}},
		looked: make(chan struct{}), wanted: make(chan struct{}, 1),
	}
}

func (s *Server) warn(text string) {
	s.telling.Lock()
	defer s.telling.Unlock()
	s.cfg.Warn(text)
}

// Link is the address by which a browser gets in at a listener that is no socket file, whose
// mode says who may.
func (s *Server) Link(l net.Listener) (link string, ok bool) {
	a, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return "", false
	}
	return "http://" + a.String() + "/?token=" + s.token, true
}

// Serve looks, and answers at listeners, which it closes, until ctx ends; that is no error.
func (s *Server) Serve(ctx context.Context, at []net.Listener) error {
	ctx, end := context.WithCancel(ctx)
	var looks sync.WaitGroup
	looks.Go(func() { s.look(ctx) })
	err := listen.Serve(ctx, &http.Server{
		Handler: s.handler(), ReadTimeout: readTime, WriteTimeout: writeTime, IdleTimeout: idleTime, MaxHeaderBytes: 16 << 10,
		ErrorLog:    log.New(warning(s.warn), "", 0),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}, at, mostConnections)
	end()
	looks.Wait()
	s.writing <- struct{}{} // what was begun is put back
	return err
}

// look looks again and again until ctx ends.
func (s *Server) look(ctx context.Context) {
	said := ""
	for {
		err := s.sample(ctx)
		if ctx.Err() != nil {
			return
		}
		if text := err.Error(); text != said { // it may fail in the same way for days
			s.warn("what trees do cannot be read: " + text)
			said = text
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(seldom):
		}
	}
}

// sample looks until that fails, or ctx ends.
func (s *Server) sample(ctx context.Context) error {
	m, err := shaper.Open(s.cfg.RunDir, func(shaper.Remark) {}) // the problems of interfaces are shown beside them
	if err != nil {
		return err
	}
	defer m.Close()
	sampler := observe.NewSampler(m)
	defer sampler.Close()
	for was := (time.Time{}); ; {
		all, err := sampler.Look(ctx)
		if err != nil {
			return err
		}
		now := time.Now()
		s.attend(m)
		s.add(all, was, now)
		was = now
		if err := s.rest(ctx, sampler.Rest); err != nil {
			return err
		}
	}
}

// rest waits for the time of the next look, which comes earlier when somebody opens the page.
func (s *Server) rest(ctx context.Context, rest func(time.Duration) time.Duration) error {
	s.mu.Lock()
	interval := seldom
	if s.streams > 0 {
		interval = eachLook
	}
	s.mu.Unlock()
	soon := time.After(min(rest(eachLook), mostRest))
	late := time.After(min(rest(interval), mostRest))
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-late:
			return nil
		case <-s.wanted:
			late = soon
		}
	}
}

// add takes in what was seen since the look before, and tells streams. The first look of a
// sampler, which has none before it, only says what there is.
func (s *Server) add(all []*observe.Live, was, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := now.UnixMilli()
	if at <= s.history.end() { // the clock was set back: what was would come after what is
		s.history = history{most: s.history.most, seq: s.history.seq}
		s.rows = rows{known: map[key]*known{}, next: s.rows.next}
	}
	l, uses := laidOut(all, &s.rows, at)
	if !was.IsZero() {
		s.history.add(at, now.Sub(was).Milliseconds(), uses)
		s.rows.forget(s.history.ticks[0].at)
	}
	if text, err := json.Marshal(l); err != nil {
		s.warn(err.Error())
	} else if string(text) != string(s.layout) {
		s.layout = text
		s.laid++
	}
	close(s.looked)
	s.looked = make(chan struct{})
}

// explain says why a branch is slow, one question after the other.
func (s *Server) explain(ctx context.Context, path hierarchy.Path) (v explain.Verdict, err error) {
	m, err := shaper.Open(s.cfg.RunDir, func(shaper.Remark) {})
	if err != nil {
		return v, err
	}
	defer m.Close()
	x, err := explain.Look(ctx, m, path.Interface(), explain.Subject{Path: path}, explained, explain.Samples)
	if err != nil {
		return v, err
	}
	return x.Judge(), nil
}

// warning is a writer of lines.
type warning func(string)

func (w warning) Write(line []byte) (int, error) {
	w(string(line))
	return len(line), nil
}
