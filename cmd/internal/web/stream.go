package web

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// events tells a page what there is, and then what happens, as server-sent events: "tree" when
// branches come, go or change, "waits" when an apply begins to wait to be confirmed or does no
// more, and "tick" for every look. Who was cut off says which tick he had
// last, and is told what he missed, as far as it is known.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	if !s.join() {
		w.Header().Set("Retry-After", "15")
		http.Error(w, fmt.Sprintf("%d pages are open already: close one", mostStreams), http.StatusServiceUnavailable)
		return
	}
	defer s.leave()
	w.Header().Set("Content-Type", "text/event-stream")
	last := r.Header.Get("Last-Event-ID")
	if last == "" {
		last = r.URL.Query().Get("last") // of a page that had to begin anew
	}
	c := http.NewResponseController(w)
	if c.SetReadDeadline(time.Time{}) != nil { // which would end the stream
		return
	}
	out := []byte("retry: 2000\n\n")
	for t := s.follow(last); ; {
		var more bool
		out, more = t.next(out)
		// A page that is asleep in its browser takes nothing for a long time, and comes back.
		if c.SetWriteDeadline(time.Now().Add(writeTime)) != nil {
			return
		}
		if _, err := w.Write(out); err != nil || c.Flush() != nil {
			return
		}
		out = out[:0]
		if more {
			continue
		}
		select {
		case <-t.looked:
		case <-r.Context().Done():
			return
		}
	}
}

// join takes one of the places of streams, if there is one.
func (s *Server) join() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams >= mostStreams {
		return false
	}
	s.streams++
	select {
	case s.wanted <- struct{}{}:
	default:
	}
	return true
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams--
}

// stream is what one page has been told.
type stream struct {
	s      *Server
	seq    uint64        // the last tick
	laid   uint64        // the layout
	waited uint64        // which apply waits
	looked chan struct{} // closed when there is more
	begun  bool
}

// follow begins after the tick that was had last, "BOOT-NUMBER", or with the latest where that
// is not this server's.
func (s *Server) follow(last string) *stream {
	t := &stream{s: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	boot, number, _ := strings.Cut(last, "-")
	seq, err := strconv.ParseUint(number, 10, 64)
	switch {
	case boot == s.boot && err == nil && seq <= s.history.seq:
		t.seq = seq
	case s.history.seq > 0:
		t.seq = s.history.seq - 1
	}
	return t
}

// mostAtOnce is about how many bytes are made ready for a page at a time: the whole history of many
// branches is tens of megabytes.
const mostAtOnce = 64 << 10

// next appends what there is to tell, or the beginning of that, and then says that there is more.
func (t *stream) next(b []byte) (_ []byte, more bool) {
	s := t.s
	s.mu.Lock()
	t.looked = s.looked
	ticks, laid, layout, waits := s.history.since(t.seq), s.laid, s.layout, s.waits
	s.mu.Unlock()
	if !t.begun {
		write := time.Duration(0) // nothing is
		if s.cfg.Write != nil {
			write = s.cfg.Write.Confirm
		}
		b = fmt.Appendf(b, "event: hello\ndata: {\"boot\":%q,\"version\":%q,\"write\":%d}\n\n", s.boot, s.cfg.Version, write.Milliseconds())
	}
	if !t.begun || waits.told != t.waited {
		t.waited = waits.told
		b = waits.append(b)
	}
	t.begun = true
	if laid != t.laid {
		t.laid = laid
		b = append(b, "event: tree\ndata: "...)
		b = append(append(b, layout...), "\n\n"...)
	}
	for _, tick := range ticks {
		if len(b) > mostAtOnce {
			return b, true
		}
		t.seq = tick.seq
		b = tick.append(b, s.boot)
	}
	return b, false
}

// append writes a tick as an event. Rows that did nothing are left out.
func (t *tick) append(b []byte, boot string) []byte {
	b = fmt.Appendf(b, "id: %s-%d\nevent: tick\ndata: {\"seq\":%d,\"t\":%d,\"d\":%d,\"rows\":[", boot, t.seq, t.seq, t.at, t.took)
	for i, u := range t.uses {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '[')
		b = strconv.AppendUint(b, uint64(u.row), 10)
		b = append(b, ',')
		b = strconv.AppendUint(b, uint64(u.bits), 10)
		b = append(b, ',')
		b = strconv.AppendUint(b, uint64(u.delay), 10)
		b = append(b, ',')
		b = strconv.AppendFloat(b, float64(u.drops), 'g', 4, 32)
		b = append(b, ',')
		b = strconv.AppendFloat(b, float64(u.marks), 'g', 4, 32)
		b = append(b, ',')
		b = strconv.AppendUint(b, uint64(u.backlog), 10)
		b = append(b, ']')
	}
	return append(b, "]}\n\n"...)
}
