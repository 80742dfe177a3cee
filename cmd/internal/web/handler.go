package web

import (
	"crypto/subtle"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
)

//go:embed page
var embedded embed.FS

// mostPolicy is as long as a policy may be that is sent: one of ten thousand branches has half of it.
const mostPolicy = 2 << 20

// allowed is what the page may do: run what comes with it, and ask who it came from.
const allowed = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// handler answers. Each request goes through all that may refuse it.
func (s *Server) handler() http.Handler {
	page, err := fs.Sub(embedded, "page")
	if err != nil {
		panic(err) // it is a part of the program
	}
	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServerFS(page))
	mux.HandleFunc("GET /events", s.events)
	mux.HandleFunc("GET /history", s.past)
	mux.HandleFunc("GET /explain", s.question(s.why))
	mux.HandleFunc("POST /plan", s.question(s.plan))
	if do := s.cfg.Write; do != nil {
		mux.HandleFunc("POST /apply", s.writes(func(r *http.Request, body string) Answer {
			return do.Apply(r.Context(), body, r.Header.Get(planHeader))
		}))
		mux.HandleFunc("POST /keep", s.ends(do.Keep))
		mux.HandleFunc("POST /back", s.ends(do.GoBack))
	}
	return headers(local(http.NewCrossOriginProtection().Handler(s.known(ours(mux)))))
}

// headers keep the page to itself, whatever is answered.
func headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", allowed)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// local refuses requests that name another machine: a name of somebody else's may be given this
// machine's address, and a page from there would be of the same origin.
func local(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
		if host != "localhost" && (err != nil || !ip.Unmap().IsLoopback()) {
			http.Error(w, fmt.Sprintf("this answers to localhost, 127.0.0.1 and [::1], and not to %q", r.Host), http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// known lets those in who have the session, or get it by the token. Who may connect to a socket
// file says its mode.
func (s *Server) known(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		at, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		// Browsers do not tell ports apart when they send cookies.
		name := fmt.Sprintf("vifshape-%d", at.Port)
		if c, err := r.Cookie(name); err == nil && same(c.Value, s.session) {
			next.ServeHTTP(w, r)
			return
		}
		if r.Method == http.MethodGet && r.URL.Path == "/" && same(r.URL.Query().Get("token"), s.token) {
			http.SetCookie(w, &http.Cookie{Name: name, Value: s.session, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode})
			http.Redirect(w, r, "/", http.StatusSeeOther) // the token is to be seen no longer
			return
		}
		http.Error(w, "open the link that `vifshape web` printed when it was started", http.StatusUnauthorized)
	})
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// ours refuses what another page asks for, the page itself aside: one from another port of this
// machine is of the same site, and its requests bring the session along.
func ours(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("Sec-Fetch-Site") {
		case "", "same-origin", "none":
		default:
			if r.URL.Path != "/" || r.Header.Get("Sec-Fetch-Mode") != "navigate" {
				http.Error(w, "another page asks for this", http.StatusForbidden)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// question is asked when it is its turn, unless many wait already. It gets the body of the request.
func (s *Server) question(ask func(r *http.Request, body string) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case s.questions <- struct{}{}:
			defer func() { <-s.questions }()
		default:
			w.Header().Set("Retry-After", "2")
			http.Error(w, "the server is busy with other questions: ask again in a moment", http.StatusServiceUnavailable)
			return
		}
		body, ok := sent(w, r)
		if !ok {
			return
		}
		select {
		case s.turn <- struct{}{}:
			defer func() { <-s.turn }()
		case <-r.Context().Done(): // nobody waits for it any more
			return
		}
		answer, err := ask(r, body)
		switch {
		case r.Context().Err() != nil:
		case err != nil:
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		default:
			writeJSON(w, answer)
		}
	}
}

// sent is the body of a request, unless it is too large, which is answered then. What the request
// waits for may take longer than itself.
func sent(w http.ResponseWriter, r *http.Request) (body string, ok bool) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, mostPolicy))
	if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
		http.Error(w, fmt.Sprintf("that is more than the %d bytes that a policy may have", large.Limit), http.StatusRequestEntityTooLarge)
		return "", false
	}
	if err == nil {
		err = http.NewResponseController(w).SetReadDeadline(time.Time{})
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return "", false
	}
	return string(b), true
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a client that is gone is its own affair
}

// why says what holds a branch up.
func (s *Server) why(r *http.Request, _ string) (any, error) {
	path := hierarchy.Path(r.URL.Query().Get("branch"))
	if path == "" {
		return nil, errors.New("no branch is named")
	}
	return s.explain(r.Context(), path)
}

// plan says what a policy would change.
func (s *Server) plan(r *http.Request, body string) (any, error) {
	return s.cfg.Plan(r.Context(), body), nil
}

// past is what one branch did in one direction.
func (s *Server) past(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	k := key{path: hierarchy.Path(q.Get("branch"))}
	if q.Get("direction") == hierarchy.Receive.String() {
		k.direction = hierarchy.Receive
	}
	s.mu.Lock()
	n, there := s.rows.known[k]
	var past series
	if there {
		past = s.history.of(n.id)
	}
	s.mu.Unlock()
	if !there {
		http.Error(w, "there is no such branch", http.StatusNotFound)
		return
	}
	writeJSON(w, past)
}
