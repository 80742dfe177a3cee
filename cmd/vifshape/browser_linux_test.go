package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/heapprofiler"
	"github.com/chromedp/cdproto/log"
	requests "github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/vifshape/vifshape/tc/tctest"
)

// browser is Debian's Chromium without a screen, with one page.
type browser struct {
	*testing.T
	ctx context.Context

	mu     sync.Mutex
	asked  []string // the addresses of all requests
	said   []string // by the console: errors, violations of the page's own rules, all else
	cutOff bool     // requests may fail
}

// newBrowser starts one, which ends with the test.
func newBrowser(t *testing.T) *browser {
	t.Helper()
	dir := t.TempDir()
	options := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(tctest.RequireProgram(t, "chromium")), chromedp.UserDataDir(dir), chromedp.Env("HOME=" + dir),
		chromedp.NoFirstRun, chromedp.NoSandbox, chromedp.Headless, chromedp.DisableGPU,
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
	}
	for _, f := range []string{"disable-quic", "disable-background-networking", "disable-component-update", "disable-sync", "disable-dev-shm-usage"} {
		options = append(options, chromedp.Flag(f, true))
	}
	b := &browser{T: t}
	ctx, done := context.WithTimeout(context.Background(), 5*time.Minute)
	ctx, stop := chromedp.NewExecAllocator(ctx, options...)
	b.ctx, _ = chromedp.NewContext(ctx, chromedp.WithListener(b.note))
	t.Cleanup(func() {
		// Its directory is removed when it writes no more.
		if err := chromedp.Cancel(b.ctx); err != nil {
			t.Logf("chromium: %v", err)
		}
		stop()
		done()
	})
	// So that the test can say what happens, too.
	call(b, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{
		Source: `window.EventSource = class extends EventSource { constructor(...a) { super(...a); window.stream = this; } };`})
	return b
}

// note keeps what is asked and said.
func (b *browser) note(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *requests.EventRequestWillBeSent:
		b.asked = append(b.asked, e.Request.URL)
	case *runtime.EventConsoleAPICalled:
		b.said = append(b.said, fmt.Sprintf("console.%s", e.Type))
	case *runtime.EventExceptionThrown:
		b.said = append(b.said, fmt.Sprintf("exception: %s", e.ExceptionDetails.Text))
	case *log.EventEntryAdded:
		if !b.cutOff || e.Entry.Source != log.EntrySourceNetwork {
			b.said = append(b.said, fmt.Sprintf("%s: %s (%s)", e.Entry.Source, e.Entry.Text, e.Entry.URL))
		}
	}
}

// mayFail says whether requests may fail from now on, as while there is no server.
func (b *browser) mayFail(may bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cutOff = may
}

func call[P, R any](b *browser, c cdp.Command[P, R], p P) R {
	b.Helper()
	r, err := chromedp.Call(b.ctx, c, p)
	if err != nil {
		b.Fatalf("chromium: %s: %v", c.Method, err)
	}
	return r
}

func (b *browser) do(all ...chromedp.Action[chromedp.Void]) {
	b.Helper()
	if err := chromedp.Do(b.ctx, all...); err != nil {
		b.Fatalf("chromium: %v", err)
	}
}

// value is what an expression comes to in the page.
func value[T any](b *browser, expression string) T {
	b.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		b.Fatalf("%s: %v", expression, err)
	}
	return v
}

// until waits until an expression holds in the page.
func (b *browser) until(expression string) {
	b.Helper()
	for deadline := time.Now().Add(time.Minute); !value[bool](b, "!!("+expression+")"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.picture("late")
			b.Fatalf("it never came that %s; the page has:\n%s", expression, value[string](b, "document.body.innerText"))
		}
	}
}

// see changes the size of the window and the colours that are preferred.
func (b *browser) see(width, height int64, scheme string) {
	b.Helper()
	b.do(chromedp.EmulateViewport(width, height))
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
	value[bool](b, "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
}

// picture keeps what is seen, where the test is asked to (go test -artifacts).
func (b *browser) picture(name string) {
	b.Helper()
	p, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err == nil {
		err = os.WriteFile(filepath.Join(b.ArtifactDir(), name+".png"), p, 0o644)
	}
	if err != nil {
		b.Error(err)
	}
}

// heap is what the page's objects take, without garbage.
func (b *browser) heap() int64 {
	b.Helper()
	for range 2 {
		call(b, heapprofiler.CollectGarbage, cdp.Empty{})
	}
	return int64(call(b, runtime.GetHeapUsage, cdp.Empty{}).UsedSize)
}

// wellBehaved holds that nothing was asked of anybody but one place, and that the console is empty.
func (b *browser) wellBehaved(place string) {
	b.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.asked) == 0 {
		b.Error("no request was seen")
	}
	for _, u := range b.asked {
		if !strings.HasPrefix(u, place) {
			b.Errorf("%s is asked for", u)
		}
	}
	if len(b.said) > 0 {
		b.Errorf("the console has:\n%s", strings.Join(b.said, "\n"))
	}
}
