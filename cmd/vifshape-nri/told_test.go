package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"

	"github.com/vifshape/vifshape/cmd/client"
	"github.com/vifshape/vifshape/hierarchy/amend"
)

// agent is one that notes what it is told, and refuses what the real one refuses of pods.
type agent struct {
	// before is called before a request is carried out, which it may keep from that.
	before func(*client.Request) *client.Error

	mu    sync.Mutex
	pods  map[string]amend.Pod // that run
	asked []client.Request
}

// told makes an agent, and a plugin that tells it of pods.
func told(t *testing.T) (*agent, *plugin, *bytes.Buffer) {
	t.Helper()
	a := &agent{pods: map[string]amend.Pod{}}
	var out bytes.Buffer
	p := &plugin{log: slog.New(slog.NewTextHandler(&out, nil)), anew: make(chan struct{}, 1)}
	p.agent.Socket = filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", p.agent.Socket)
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer c.Close()
				a.answer(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		work.Wait()
	})
	return a, p, &out
}

// answer is that to one request; none where it has no code.
func (a *agent) answer(c net.Conn) {
	r := bufio.NewReaderSize(c, client.MaxMessage)
	line, err := r.ReadSlice('\n')
	var q client.Request
	var no *client.Error
	switch {
	case err != nil:
		no = &client.Error{Code: 64, Text: "a request has 65536 bytes at most"}
	case json.Unmarshal(line, &q) != nil:
		no = &client.Error{Code: 64, Text: "a request is an object of JSON"}
	default:
		no = check(&q)
	}
	if no == nil && a.before != nil {
		no = a.before(&q)
	}
	reply := client.Reply{Version: client.Version}
	a.mu.Lock()
	a.asked = append(a.asked, q)
	if no != nil {
		reply.Code, reply.Error = no.Code, no.Text
	} else {
		for _, id := range q.Gone {
			delete(a.pods, id)
		}
		for _, x := range q.Run {
			a.pods[x.ID] = x
			reply.Places = append(reply.Places, client.Place{ID: x.ID})
		}
		if len(q.Run)+len(q.Gone) == 0 {
			for id := range a.pods {
				reply.Places = append(reply.Places, client.Place{ID: id})
			}
		}
	}
	a.mu.Unlock()
	if b, err := json.Marshal(reply); err == nil && reply.Code >= 0 {
		_, _ = c.Write(append(b, '\n'))
	}
}

// check is checkPods of the agent, as far as it matters here.
func check(q *client.Request) *client.Error {
	for _, x := range q.Run {
		if x.Cgroup == "/" || len(x.Wish) > 4096 || strings.ContainsFunc(x.Wish, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }) {
			return &client.Error{Code: 64, Text: fmt.Sprintf("%s is no pod", &x)}
		}
	}
	return nil
}

// running are the ids of the pods that the agent knows.
func (a *agent) running() (ids []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id := range a.pods {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// requests are how many came, but for those for all that is known, since it was asked last.
func (a *agent) requests() (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, q := range a.asked {
		if len(q.Run)+len(q.Gone) > 0 {
			n++
		}
	}
	a.asked = nil
	return n
}

// sandboxes are so many pods that run.
func sandboxes(n int) (all []*api.PodSandbox, ids []string) {
	for i := range n {
		id := fmt.Sprintf("%03d", i)
		ids = append(ids, id)
		all = append(all, &api.PodSandbox{
			Id: id, Namespace: "shop", Name: "web-" + id, Pid: 1, Labels: map[string]string{"app": "web"},
			Annotations: map[string]string{}, Linux: &api.LinuxPodSandbox{CgroupParent: "/kubepods/pod" + id},
		})
	}
	return all, ids
}

// TestHostile holds that a pod whose author writes what no branch can be called, or more than a
// request can hold, keeps nobody else from being told of, and loses no more than that.
func TestHostile(t *testing.T) {
	a, p, out := told(t)
	all, ids := sandboxes(60)
	for i, wish := range []string{"web\nroot", "web\ufffd", strings.Repeat("w", 5000), strings.Repeat("<", 4096)} {
		all[i].Annotations[branchAnnotation] = wish
	}
	all[4].Annotations[branchAnnotation] = "eth0.1/web/api"
	many := map[string]string{}
	for i := range 1000 {
		many[fmt.Sprintf("label-%d.example/%s", i, strings.Repeat("k", 40))] = strings.Repeat("v", 60)
	}
	all[5].Labels = many
	for _, s := range all[20:] { // as many as will do, of a size that 16 have no room with
		s.Labels = map[string]string{"app": strings.Repeat("<", 1000)}
	}
	if _, err := p.Synchronize(context.Background(), all, nil); err != nil {
		t.Fatal(err)
	}
	if err := p.compare(context.Background()); err != nil {
		t.Error(err)
	}
	if got := a.running(); !slices.Equal(got, ids) {
		t.Errorf("told of %d: %q", len(got), got)
	}
	if n := a.requests(); n > 6 { // 2 for small ones, 4 for the others
		t.Errorf("%d requests", n)
	}
	for i, want := range []string{"", "", "", "", "eth0.1/web/api", ""} {
		if x := a.pods[ids[i]]; x.Wish != want || len(x.Labels) != map[bool]int{false: 1, true: 0}[i == 5] {
			t.Errorf("%s: wish %q, %d labels", ids[i], x.Wish, len(x.Labels))
		}
	}
	if n := strings.Count(out.String(), "level=WARN"); n != 5 || out.Len() > 20<<10 {
		t.Errorf("%d warnings, %d bytes:\n%s", n, out.Len(), out)
	}
}

// TestRefused holds that pods of which the agent wants to hear nothing are refused alone, that
// this is said once, and that they are not told of by the second.
func TestRefused(t *testing.T) {
	a, p, out := told(t)
	all, ids := sandboxes(40)
	all[3].Linux.CgroupParent, all[4].Linux.CgroupParent, all[30].Linux.CgroupParent = "/", "/", "/"
	good := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return id == "003" || id == "004" || id == "030" })
	if _, err := p.Synchronize(context.Background(), all, nil); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := p.compare(context.Background()); err != nil {
			t.Error(err)
		}
	}
	if got := a.running(); !slices.Equal(got, good) {
		t.Errorf("told of %d: %q", len(got), got)
	}
	if n := a.requests(); n != 3+32+4+4 { // of the last, one is for what is refused together
		t.Errorf("%d requests", n)
	}
	if err := p.StartContainer(context.Background(), all[3], nil); err != nil {
		t.Error(err)
	}
	if n := strings.Count(out.String(), "level=WARN"); n != 3 {
		t.Errorf("%d warnings:\n%s", n, out)
	}
}

// TestFailing holds that what fails of some pods keeps no others from being told of, but that an
// agent that does not answer is not asked on and on.
func TestFailing(t *testing.T) {
	for _, tt := range []struct {
		name       string
		code, want int // pods
		requests   int
	}{{"fails", 1, 24, 3}, {"does not answer", -1, 0, 1}} {
		t.Run(tt.name, func(t *testing.T) {
			a, p, _ := told(t)
			a.before = func(q *client.Request) *client.Error {
				if len(q.Run) > 0 && q.Run[0].ID == "000" {
					return &client.Error{Code: tt.code, Text: "no"}
				}
				return nil
			}
			all, _ := sandboxes(40)
			if _, err := p.Synchronize(context.Background(), all, nil); err != nil {
				t.Fatal(err)
			}
			if err := p.compare(context.Background()); err == nil {
				t.Error("nothing failed")
			}
			if n, asked := len(a.running()), a.requests(); n != tt.want || asked != tt.requests {
				t.Errorf("%d pods by %d requests", n, asked)
			}
		})
	}
}

// TestFailingOften holds that an agent that fails the same way again and again is asked less and
// less often, and that it is said once.
func TestFailingOften(t *testing.T) {
	a, p, out := told(t)
	a.before = func(q *client.Request) *client.Error {
		if len(q.Run) > 0 {
			return &client.Error{Code: 1, Text: "no"}
		}
		return nil
	}
	all, _ := sandboxes(1)
	if _, err := p.Synchronize(context.Background(), all, nil); err != nil {
		t.Fatal(err)
	}
	<-p.anew
	ctx, stop := context.WithTimeout(context.Background(), 5*time.Second)
	defer stop()
	p.follow(ctx)
	if n := a.requests(); n != 3 { // at 0, 1 and 3 s, and next at 7
		t.Errorf("%d requests", n)
	}
	if n := strings.Count(out.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings:\n%s", n, out)
	}
}

// TestEndedMeanwhile holds that a pod that ends while the agent is told of it does not come back.
func TestEndedMeanwhile(t *testing.T) {
	a, p, _ := told(t)
	all, _ := sandboxes(2)
	a.before = func(q *client.Request) *client.Error {
		if slices.ContainsFunc(q.Run, func(x amend.Pod) bool { return x.ID == "000" }) {
			if err := p.StopPodSandbox(context.Background(), all[0]); err != nil {
				t.Error(err)
			}
		}
		return nil
	}
	if _, err := p.Synchronize(context.Background(), all, nil); err != nil {
		t.Fatal(err)
	}
	if err := p.compare(context.Background()); err != nil {
		t.Error(err)
	}
	if got := a.running(); !slices.Equal(got, []string{"001"}) {
		t.Errorf("after a look: %q", got)
	}
	if err := p.RunPodSandbox(context.Background(), all[0]); err != nil {
		t.Error(err)
	}
	if got := a.running(); !slices.Equal(got, []string{"001"}) {
		t.Errorf("after its start: %q", got)
	}
}

// TestStartedMeanwhile holds that a pod that the runtime took for ended, and starts a container in
// while that is told, is told of.
func TestStartedMeanwhile(t *testing.T) {
	a, p, _ := told(t)
	all, _ := sandboxes(1)
	a.pods["000"] = amend.Pod{}
	a.before = func(q *client.Request) *client.Error {
		if len(q.Gone) > 0 {
			if err := p.StartContainer(context.Background(), all[0], nil); err != nil {
				t.Error(err)
			}
		}
		return nil
	}
	if _, err := p.Synchronize(context.Background(), nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := p.compare(context.Background()); err != nil {
		t.Error(err)
	}
	if got := a.running(); !slices.Equal(got, []string{"000"}) {
		t.Errorf("%q", got)
	}
}

// TestNoCgroup holds that a pod whose cgroup is not known is said once, and of no other harm.
func TestNoCgroup(t *testing.T) {
	a, p, out := told(t)
	all, _ := sandboxes(2)
	all[0].Linux.CgroupParent = ""
	for _, s := range all {
		if err := p.RunPodSandbox(context.Background(), s); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if err := p.StartContainer(context.Background(), all[0], nil); err != nil {
			t.Error(err)
		}
	}
	if err := p.compare(context.Background()); err != nil {
		t.Error(err)
	}
	if n := strings.Count(out.String(), "no cgroup of its own"); n != 1 {
		t.Errorf("said %d times: %s", n, out)
	}
	if got := a.running(); !slices.Equal(got, []string{"001"}) {
		t.Errorf("%q", got)
	}
	p.strict = true
	if err := p.StartContainer(context.Background(), all[0], nil); err == nil || !strings.Contains(err.Error(), "no cgroup of its own") {
		t.Errorf("strict: %v", err)
	}
}

// TestStrict holds that a pod which was not let start is none that runs: the runtime tells nothing
// more of it (RunPodSandbox, internal/cri/server/sandbox_run.go, containerd v2.1). And that one that
// runs already is told of with what of it is understood.
func TestStrict(t *testing.T) {
	a, p, _ := told(t)
	p.strict = true
	a.before = func(q *client.Request) *client.Error {
		if len(q.Run) > 0 && q.Run[0].ID == "000" {
			return &client.Error{Code: 1, Text: "no"}
		}
		return nil
	}
	all, _ := sandboxes(3)
	all[1].Annotations[branchAnnotation] = "\n"
	all[2].Annotations[egressAnnotation] = "fast"
	if _, err := p.Synchronize(context.Background(), all[2:], nil); err != nil {
		t.Fatal(err)
	}
	for _, s := range all[:2] {
		if err := p.RunPodSandbox(context.Background(), s); err == nil {
			t.Errorf("%s starts", s.GetId())
		}
	}
	a.before = nil
	if err := p.compare(context.Background()); err != nil {
		t.Error(err)
	}
	if got := a.running(); !slices.Equal(got, []string{"002"}) {
		t.Errorf("%q", got)
	}
}
