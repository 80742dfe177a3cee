// Package exporter tells Prometheus what branches count: at a socket, or by a file for the
// textfile collector of node_exporter. It takes no privileges, and looks only when it is asked.
package exporter

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vifshape/vifshape/cmd/client"
	"github.com/vifshape/vifshape/cmd/internal/listen"
	"github.com/vifshape/vifshape/cmd/internal/metrics"
	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
)

const (
	// A client may take readTime for its request, and answerTime from then on until it has
	// the whole answer.
	readTime   = 5 * time.Second
	answerTime = 30 * time.Second
	idleTime   = 2 * time.Minute // between two scrapes by one connection
	// Requests at once: one looks, the others wait for their turn or for their client, with what
	// they saw. More are refused.
	mostRequests = 4
	// Connections at once. More wait to be accepted.
	mostConnections = 32
)

// Config is how an exporter works.
type Config struct {
	RunDir  string
	Version string // of the program
	// Warn tells what does not end it, by one goroutine at a time.
	Warn func(text string)
}

// Exporter looks at the network namespace that it was made in.
type Exporter struct {
	cfg     Config
	turn    sync.Mutex           // of who looks
	unlike  map[string]time.Time // by interface: since when it is unlike its record
	said    map[string]string    // by interface: what was said to be wrong with it, so that it is said once
	telling sync.Mutex
}

// New is an exporter. Nothing is looked at yet.
func New(cfg Config) *Exporter { return &Exporter{cfg: cfg, said: map[string]string{}} }

func (e *Exporter) warnf(format string, args ...any) {
	e.telling.Lock()
	defer e.telling.Unlock()
	e.cfg.Warn(fmt.Sprintf(format, args...))
}

// look reads all interfaces.
func (e *Exporter) look(ctx context.Context) (*look, error) {
	e.turn.Lock()
	defer e.turn.Unlock()
	if err := ctx.Err(); err != nil { // nobody waits for it any more
		return nil, err
	}
	start := time.Now()
	m, err := shaper.Open(e.cfg.RunDir, func(r shaper.Remark) { e.once(string(r.About)+" "+r.Text, r.Text) })
	if err != nil {
		return nil, err
	}
	defer m.Close()
	l := &look{version: e.cfg.Version}
	if l.policies, err = m.Store.Enabled(); err != nil {
		e.once("the enabled policies", err.Error())
	}
	all, err := e.settled(ctx, func() ([]*observe.Figures, error) { return observe.Count(ctx, m) })
	if err != nil {
		return nil, err
	}
	l.interfaces, l.agent = all, client.Client{Socket: m.Store.AgentSocketFile()}.Listens()
	for _, f := range all {
		switch {
		case f.Err == nil:
			delete(e.said, f.Interface)
		case f.Absent:
			has := "a policy"
			if f.Limits {
				has = "limits"
			}
			e.once(f.Interface, f.Interface+" has "+has+" and is not there now")
		default:
			e.once(f.Interface, f.Err.Error())
		}
	}
	l.took = time.Since(start)
	return l, nil
}

// settle is how long an interface is unlike its record before it is said to be.
const settle = 300 * time.Millisecond

// settled counts, and again where an interface has just become unlike its record: for a moment
// each is that while a policy is applied, which nobody should be woken up for.
func (e *Exporter) settled(ctx context.Context, count func() ([]*observe.Figures, error)) ([]*observe.Figures, error) {
	for {
		all, err := count()
		if err != nil || !e.unsettled(all) {
			return all, err
		}
		select {
		case <-ctx.Done(): // whoever asks next finds it as old as it is
			return nil, ctx.Err()
		case <-time.After(settle / 3):
		}
	}
}

// unsettled notes since when interfaces are unlike their records, and says whether one has been
// only for a moment.
func (e *Exporter) unsettled(all []*observe.Figures) (is bool) {
	was, now := e.unlike, time.Now()
	e.unlike = map[string]time.Time{}
	for _, f := range all {
		if f.Err == nil || f.Absent {
			continue
		}
		since, ok := was[f.Interface]
		if !ok {
			since = now
		}
		e.unlike[f.Interface] = since
		is = is || now.Sub(since) < settle
	}
	return is
}

// once tells something that was not told of the same last. Others may make up names without
// end, of which no more are remembered then.
func (e *Exporter) once(of, text string) {
	if e.said[of] == text {
		return
	}
	if len(e.said) > 1000 {
		clear(e.said)
	}
	e.said[of] = text
	e.warnf("%s", text)
}

// File is that which [Exporter.Write] writes.
const File = "vifshape.prom"

// Write looks, and puts what it saw into [File] of a directory, whose readers see the old file
// or the new one.
func (e *Exporter) Write(ctx context.Context, dir string) error {
	l, err := e.look(ctx)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+File+"-*") // the collector reads what ends with .prom
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when all went well
	if err = errors.Join(l.write(f), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, File))
}

// Serve answers at listeners, which it closes, until ctx ends; that is no error.
func (e *Exporter) Serve(ctx context.Context, at []net.Listener) error {
	s := &http.Server{
		Handler: e.handler(), ReadTimeout: readTime, WriteTimeout: readTime + answerTime, IdleTimeout: idleTime, MaxHeaderBytes: 16 << 10,
		ErrorLog: log.New(warning(e.warnf), "", 0),
	}
	return listen.Serve(ctx, s, at, mostConnections)
}

// handler answers requests for /metrics, of which so many may be under way.
func (e *Exporter) handler() http.Handler {
	slots := make(chan struct{}, mostRequests)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			w.Header().Set("Retry-After", "1")
			http.Error(w, fmt.Sprintf("%d requests are under way already: ask again when one is done", mostRequests), http.StatusServiceUnavailable)
			return
		}
		l, err := e.look(r.Context())
		if r.Context().Err() != nil { // the client is gone
			return
		}
		if err != nil {
			e.warnf("a scrape failed: %v", err)
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", metrics.ContentType)
		_ = l.write(w) // a client that is gone is its own affair
	})
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "the metrics are read by GET", http.StatusMethodNotAllowed)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "the metrics are at /metrics", http.StatusNotFound)
	})
	return mux
}

// warning is a writer of lines.
type warning func(format string, args ...any)

func (w warning) Write(line []byte) (int, error) {
	w("%s", line)
	return len(line), nil
}
