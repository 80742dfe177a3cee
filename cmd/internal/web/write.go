package web

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/vifshape/vifshape/cmd/internal/shaper"
)

// Writing is what a page may do that has the write code.
type Writing struct {
	// Confirm is the time after which what was applied goes back, unless it is kept.
	Confirm time.Duration
	// Apply applies a policy if it has the plan still that was shown, by [Answer].Plan.
	Apply func(ctx context.Context, policy, plan string) Answer
	// Keep and GoBack end the wait of the apply that has an ID.
	Keep, GoBack func(ctx context.Context, id string) Answer
}

const (
	// The headers of requests that write: a page of somebody else's cannot send them, and they
	// are in no address that is kept.
	codeHeader = "Vifshape-Code"
	planHeader = "Vifshape-Plan"
	// mostWrong codes in a row, and no code is the right one any more.
	mostWrong = 10
)

// code is the secret of who may write. That of reading is not enough: by ssh -L whoever uses the
// machine on which ssh runs is let in, and a cookie goes to every port of 127.0.0.1.
type code struct {
	is string // 80 bits of base32

	mu    sync.Mutex
	wrong int // in a row
}

func newCode() *code { return &code{is: rand.Text()[:16]} }

// String is the code as it is read and typed.
func (c *code) String() string {
	return c.is[:4] + "-" + c.is[4:8] + "-" + c.is[8:12] + "-" + c.is[12:]
}

// typed has what people take for letters of base32, which has no such digits, and leaves out
// what only separates.
var typed = strings.NewReplacer("-", "", " ", "", "0", "O", "1", "I", "8", "B")

// check is an error unless what was sent is the code. Last says that none will be right from now on.
func (c *code) check(sent string) (last bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.wrong >= mostWrong:
		return false, fmt.Errorf("nothing is written any more: %d write codes in a row were wrong; start `vifshape web --write` again, which prints another one", mostWrong)
	case strings.TrimSpace(sent) == "":
		return false, errors.New("this takes the write code that `vifshape web --write` printed when it was started")
	case !same(typed.Replace(strings.ToUpper(sent)), c.is):
		c.wrong++
		return c.wrong == mostWrong, errors.New("that is not the write code that `vifshape web --write` printed when it was started")
	}
	c.wrong = 0
	return false, nil
}

// Code is what lets a page write.
func (s *Server) Code() string { return s.code.String() }

// writes does something for who has the code, one after the other.
func (s *Server) writes(do func(r *http.Request, body string) Answer) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		last, err := s.code.check(r.Header.Get(codeHeader))
		if last {
			s.warn(fmt.Sprintf("%d wrong write codes came in a row: nothing is written any more until the next start; `vifshape confirm` and `vifshape rollback` do what the page did", mostWrong))
		}
		if err != nil {
			_, _ = io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, mostPolicy)) // a browser reads no answer before
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		body, ok := sent(w, r)
		if !ok {
			return
		}
		select {
		case s.writing <- struct{}{}:
			defer func() { <-s.writing }()
		case <-r.Context().Done(): // nobody waits for it any more
			return
		}
		answer := do(r, body)
		s.attendNow()
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTime)) // it may have taken long; else the answer is late
		writeJSON(w, answer)
	}
}

// ends is a request that ends the wait of the apply whose ID is sent.
func (s *Server) ends(do func(ctx context.Context, id string) Answer) http.HandlerFunc {
	return s.writes(func(r *http.Request, id string) Answer {
		if id == "" {
			return Answer{Text: "the request names no apply", Wrong: true}
		}
		return do(r.Context(), id)
	})
}

// attend takes in which apply waits to be confirmed, and what became of the one before.
func (s *Server) attend(m *shaper.Machine) {
	s.attending.Lock()
	defer s.attending.Unlock()
	is, err := m.Unconfirmed()
	if err != nil { // whoever confirms is told
		return
	}
	s.mu.Lock()
	was := s.waits.apply
	s.mu.Unlock()
	now := waits{apply: is}
	switch {
	case is == nil && was == nil:
		return
	case is != nil && was != nil && is.ID() == was.ID() && is.Boot == was.Boot && is.Names() == was.Names():
		return
	case is == nil:
		now.id, now.outcome = was.ID(), m.Outcome(was.Unconfirmed)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now.told = s.waits.told + 1
	s.waits = now
	close(s.looked)
	s.looked = make(chan struct{})
}

// attendNow is attend at once, after something was written. That it fails shows at the next look.
func (s *Server) attendNow() {
	m, err := shaper.Open(s.cfg.RunDir, func(shaper.Remark) {})
	if err != nil {
		return
	}
	defer m.Close()
	s.attend(m)
}

// waits is the apply that waits to be confirmed, or else what became of the last one that did.
type waits struct {
	apply       *shaper.UnconfirmedError
	id, outcome string
	told        uint64 // how often it has changed
}

// append writes it as an event.
func (x waits) append(b []byte) []byte {
	v := struct {
		ID      string `json:"id,omitempty"`
		Names   string `json:"names,omitempty"` // of the interfaces
		Text    string `json:"text,omitempty"`
		Remedy  string `json:"remedy,omitempty"`
		Left    int64  `json:"left,omitempty"` // ms
		Outcome string `json:"outcome,omitempty"`
	}{ID: x.id, Outcome: x.outcome}
	if u := x.apply; u != nil {
		v.ID, v.Names, v.Text, v.Remedy, v.Left = u.ID(), u.Names(), u.Error(), u.Remedy(), max(1, u.Left().Milliseconds())
	}
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // it is text
	}
	return append(append(append(b, "event: waits\ndata: "...), text...), "\n\n"...)
}
