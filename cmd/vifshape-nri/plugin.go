package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/log"
	"github.com/containerd/nri/pkg/stub"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/vifshape/vifshape/cmd/client"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Annotations of pods. Those of Kubernetes are what the CNI plugin bandwidth goes by.
const (
	branchAnnotation  = "vifshape.dev/branch"
	egressAnnotation  = "kubernetes.io/egress-bandwidth"
	ingressAnnotation = "kubernetes.io/ingress-bandwidth"
)

const (
	// patience is how long a pod's start may wait for the agent: half of what the runtime
	// gives a plugin for an event (DefaultPluginRequestTimeout of NRI, 2 s).
	patience = time.Second
	// between is the time from one look at whether the agent knows all pods to the next, and
	// soon the same while it does not.
	between = time.Minute
	soon    = time.Second
	// atOnce is how many pods are told of in one request: others wait for its end.
	atOnce = 16
	// room is what pods may take of a request, which is bounded (client.MaxMessage).
	room = client.MaxMessage - 1<<10
)

// What a pod's author may write is bounded, so that a pod has room in a request, and all of them in
// a reply, which repeats wishes.
const (
	longestWish = hierarchy.MaxDepth*65 + 16 // in bytes: the path of a branch, an interface before it
	mostLabels  = 32 << 10                   // in bytes of JSON
)

// plugin tells the agent which pods run. Its methods are for any number of goroutines.
type plugin struct {
	agent   client.Client
	runtime string // socket
	strict  bool
	log     *slog.Logger

	anew chan struct{} // asks for a look

	mu   sync.Mutex
	live map[string]*pod // by the id of the sandbox; nil: the runtime has not told yet
	said string          // the last error of the agent, so that it is said once
}

// pod is one that the runtime has started.
type pod struct {
	amend.Pod
	wrong []error // what of it the agent is not told; without a cgroup, nothing at all

	told bool   // the agent knows it
	said string // the last that the agent refused of it, so that it is said once
}

// serve is the plugin's life until ctx ends. The runtime may come, go, and come back.
func (p *plugin) serve(ctx context.Context) {
	p.anew = make(chan struct{}, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.follow(ctx)
	}()
	log.Set(silent{})
	wait, said := 100*time.Millisecond, ""
	for ctx.Err() == nil {
		began := time.Now()
		err := p.connect(ctx)
		if ctx.Err() != nil {
			break
		}
		if time.Since(began) > 10*time.Second {
			wait, said = 100*time.Millisecond, ""
		}
		if text := fmt.Sprint(err); text != said {
			p.log.Warn("waits for the container runtime", "socket", p.runtime, "error", err)
			said = text
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, 2*time.Second)
	}
	<-done
	p.log.Info("ends")
}

// connect is one connection to the runtime, until that or ctx ends.
func (p *plugin) connect(ctx context.Context) error {
	if _, err := os.Stat(p.runtime); err != nil {
		return err
	}
	s, err := stub.New(p, stub.WithPluginName("vifshape"), stub.WithPluginIdx("50"), stub.WithSocketPath(p.runtime),
		stub.WithFailurePolicy(&api.FailurePolicy{FailRequest: p.strict, KeepConnected: true}))
	if err != nil {
		return err
	}
	err = s.Run(ctx)
	if err == nil {
		err = errors.New("it has closed the connection")
	}
	return err
}

// silent keeps what the library says of its connection from the log, which has that already.
type silent struct{}

func (silent) Debugf(context.Context, string, ...any) {}
func (silent) Infof(context.Context, string, ...any)  {}
func (silent) Warnf(context.Context, string, ...any)  {}
func (silent) Errorf(context.Context, string, ...any) {}

// Synchronize takes in all pods that run, at the beginning and when the runtime has come back.
// The agent is told beside it: there may be hundreds.
func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	runs := map[string]bool{} // a sandbox without a container may be one that was stopped
	for _, c := range containers {
		runs[c.GetPodSandboxId()] = true
	}
	live := map[string]*pod{}
	for _, s := range pods {
		if runs[s.GetId()] || s.GetPid() != 0 {
			live[s.GetId()] = p.read(s)
		}
	}
	p.log.Info("the container runtime tells of its pods", "pods", len(live))
	p.mu.Lock()
	p.live = live
	p.mu.Unlock()
	p.look()
	return nil, nil
}

// RunPodSandbox tells the agent of a pod whose containers are about to start. One that may not start
// is forgotten: the runtime tells nothing more of it.
func (p *plugin) RunPodSandbox(ctx context.Context, s *api.PodSandbox) error {
	x := p.take(s)
	err := p.may(p.tell(ctx, x))
	if err != nil {
		p.mu.Lock()
		delete(p.live, x.ID)
		p.mu.Unlock()
	}
	return err
}

// StartContainer tells of the pod again, where the agent did not listen before.
func (p *plugin) StartContainer(ctx context.Context, s *api.PodSandbox, _ *api.Container) error {
	p.mu.Lock()
	x := p.live[s.GetId()]
	told := x != nil && x.told
	p.mu.Unlock()
	if told {
		return nil
	}
	if x == nil {
		x = p.take(s)
	}
	return p.may(p.tell(ctx, x))
}

// take notes that a pod runs.
func (p *plugin) take(s *api.PodSandbox) *pod {
	x := p.read(s)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live == nil {
		p.live = map[string]*pod{}
	}
	p.live[x.ID] = x
	return x
}

// may is the error that keeps a pod from starting: none, unless that is wanted.
func (p *plugin) may(err error) error {
	if err == nil || p.strict {
		return err
	}
	return nil
}

// StopPodSandbox lets go of a pod.
func (p *plugin) StopPodSandbox(ctx context.Context, s *api.PodSandbox) error { return p.ended(ctx, s) }

// RemovePodSandbox lets go of one that was not stopped.
func (p *plugin) RemovePodSandbox(ctx context.Context, s *api.PodSandbox) error {
	return p.ended(ctx, s)
}

func (p *plugin) ended(ctx context.Context, s *api.PodSandbox) error {
	p.mu.Lock()
	x := p.live[s.GetId()]
	delete(p.live, s.GetId())
	p.mu.Unlock()
	if x == nil || x.Cgroup == "" {
		return nil
	}
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	if _, err := p.agent.Pods(ctx, nil, []string{x.ID}); err != nil {
		p.failed(err)
		return nil
	}
	p.log.Info("pod has ended", "pod", x)
	return nil
}

// tell tells the agent of one pod that is about to start, or of none where that is to have all that
// it asks for and cannot.
func (p *plugin) tell(ctx context.Context, x *pod) error {
	if p.strict && len(x.wrong) > 0 {
		return fmt.Errorf("vifshape: pod %s: %w", x, x.wrong[0])
	}
	if x.Cgroup == "" {
		return nil
	}
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	err := p.send(ctx, []*pod{x}, time.Now())
	if err == nil {
		return nil
	}
	if code(err) != client.BadRequest { // which is said already, and does not come right by itself
		p.failed(err)
	}
	return fmt.Errorf("vifshape: %s has no branch: %w", x, err)
}

// send tells the agent of those of some pods that still run, which wait for it since a time, zero:
// they do not. What ends meanwhile it is told of once more: that may have come to it before this.
func (p *plugin) send(ctx context.Context, pods []*pod, since time.Time) error {
	var run []amend.Pod
	p.mu.Lock()
	for _, x := range pods {
		if p.live[x.ID] != nil {
			run = append(run, x.Pod)
		}
	}
	p.mu.Unlock()
	if len(run) == 0 { // which would ask for all that the agent knows
		return nil
	}
	places, err := p.agent.Pods(ctx, run, nil)
	if err == nil {
		p.placed(places, since)
	}
	var gone []string
	p.mu.Lock()
	for _, x := range run {
		if p.live[x.ID] == nil {
			gone = append(gone, x.ID)
		}
	}
	if x := pods[0]; len(pods) == 1 && code(err) == client.BadRequest && x.said != err.Error() {
		x.said = err.Error()
		p.log.Warn("the agent refuses it: "+x.said, "pod", x)
	}
	p.mu.Unlock()
	if len(gone) > 0 {
		_, again := p.agent.Pods(ctx, nil, gone)
		err = cmp.Or(err, again)
	}
	return err
}

// code is that of the agent's answer, -1 where it gave none.
func code(err error) int {
	if no := (*client.Error)(nil); errors.As(err, &no) {
		return no.Code
	}
	return -1
}

// failed logs what the agent did not do, and has it asked again.
func (p *plugin) failed(err error) {
	p.say("pods are not where they belong", err)
	p.look()
}

// say logs what the agent did not do, once.
func (p *plugin) say(what string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var no *client.Error
	more := []any{}
	if errors.As(err, &no) && len(no.Hints) > 0 {
		more = append(more, "do", no.Hints[0])
	}
	if text := err.Error(); text != p.said {
		p.log.Warn(what+": "+text, more...)
		p.said = text
	}
}

// placed logs where pods are, how long they have waited for that, and what is not as their authors
// would like.
func (p *plugin) placed(places []client.Place, since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, at := range places {
		x := p.live[at.ID]
		if x == nil || x.told {
			continue
		}
		x.told = true
		in := cmp.Or(strings.Trim(fmt.Sprint(at.Branches), "[]"), "the rest")
		about := []any{"pod", x, "branch", in}
		if !since.IsZero() {
			about = append(about, "waited", time.Since(since).Round(time.Microsecond))
		}
		p.log.Info("pod", about...)
		for _, r := range at.Remarks {
			p.log.Warn(r, "pod", x, "branch", in)
		}
	}
}

// look asks for a look at whether the agent knows all pods.
func (p *plugin) look() {
	select {
	case p.anew <- struct{}{}:
	default: // it is asked for already
	}
}

// follow sees to it that the agent knows all pods and no others, until ctx ends.
func (p *plugin) follow(ctx context.Context) {
	pause := soon
	for {
		wait := between
		err := p.compare(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			pause = soon
		default:
			p.say("the agent does not know all pods", err)
			wait = soon
			if code(err) > 0 { // it has answered, and pods that start wait while it does so again
				wait, pause = pause, min(2*pause, between)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
			continue
		case <-p.anew:
		}
		select { // what failed just now may fail again
		case <-ctx.Done():
			return
		case <-time.After(pause / 10):
		}
	}
}

// compare tells the agent of the pods that it does not know, and of those that have gone. What it
// refuses together it is told of one by one, and what it refuses alone is no error: send has said it.
// Of what fails otherwise the first is the error, once it has been told of all.
func (p *plugin) compare(ctx context.Context) error {
	p.mu.Lock()
	ready := p.live != nil
	p.mu.Unlock()
	if !ready {
		return nil
	}
	places, err := p.agent.Pods(ctx, nil, nil)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	var gone []string
	p.mu.Lock()
	for _, at := range places {
		if p.live[at.ID] == nil {
			gone = append(gone, at.ID)
		} else {
			known[at.ID] = true
		}
	}
	p.mu.Unlock()
	for _, some := range cut(gone, len(gone)) {
		if _, err := p.agent.Pods(ctx, nil, some); err != nil {
			return err
		}
		p.log.Info("pods had ended meanwhile", "pods", len(some))
	}
	var run []*pod
	p.mu.Lock()
	for _, id := range slices.Sorted(maps.Keys(p.live)) {
		if x := p.live[id]; x.Cgroup != "" && !(x.told && known[id]) {
			run = append(run, x)
			x.told = false // or was, and the agent has lost it
		}
	}
	p.mu.Unlock()
	var first error
	for parts := cut(run, atOnce); len(parts) > 0; parts = parts[1:] {
		some := parts[0]
		err := p.send(ctx, some, time.Time{})
		switch code(err) {
		case client.BadRequest:
			if len(some) > 1 {
				parts = append(parts, cut(some, 1)...)
			}
		case client.Busy, -1:
			if err != nil {
				return err
			}
		default:
			first = cmp.Or(first, err)
		}
	}
	if first == nil {
		p.mu.Lock()
		p.said = ""
		p.mu.Unlock()
	}
	return first
}

// cut is all in parts that a request has room for, with so many in each at most.
func cut[T any](all []T, most int) (parts [][]T) {
	left := 0
	for _, x := range all {
		b, _ := json.Marshal(x) // an id or a pod, which have nothing that cannot be
		left -= len(b) + 1
		if n := len(parts) - 1; n >= 0 && left >= 0 && len(parts[n]) < most {
			parts[n] = append(parts[n], x)
			continue
		}
		parts, left = append(parts, []T{x}), room-len(b)
	}
	return parts
}

// read is a pod as the agent is told of it. What it asks for in words that mean nothing is
// logged and left out.
func (p *plugin) read(s *api.PodSandbox) *pod {
	x := &pod{Pod: amend.Pod{RunningPod: bind.RunningPod{
		ID: s.GetId(), Namespace: s.GetNamespace(), Name: s.GetName(), Labels: s.GetLabels(),
		Cgroup: s.GetLinux().GetCgroupParent(), Wish: s.GetAnnotations()[branchAnnotation],
	}}}
	if x.Cgroup == "" {
		x.wrong = append(x.wrong, errors.New("it has no cgroup of its own: nothing tells its processes from others'"))
	}
	if len(x.Wish) > longestWish || strings.ContainsFunc(x.Wish, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
		x.wrong = append(x.wrong, fmt.Errorf("%s is not held: %.100q can be no branch", branchAnnotation, x.Wish))
		x.Wish = ""
	}
	if b, err := json.Marshal(x.Labels); err != nil || len(b) > mostLabels {
		x.wrong = append(x.wrong, fmt.Errorf("it is in no branch by its labels: they are more than %d bytes", mostLabels))
		x.Labels = nil
	}
	for _, c := range []struct {
		key string
		to  *hierarchy.Amount
	}{{egressAnnotation, &x.Up}, {ingressAnnotation, &x.Down}} {
		text := s.GetAnnotations()[c.key]
		if text == "" {
			continue
		}
		rate, err := bandwidth(text)
		if err != nil {
			x.wrong = append(x.wrong, fmt.Errorf("%s is not held: %w", c.key, err))
			continue
		}
		*c.to = hierarchy.Absolute(rate)
	}
	for _, err := range x.wrong {
		p.log.Warn(err.Error(), "pod", x)
	}
	return x
}

// bandwidth reads a quantity of Kubernetes in bit/s, in the bounds that its CNI plugins keep
// (ExtractPodBandwidthResources, pkg/util/bandwidth/utils.go, v1.34).
func bandwidth(s string) (hierarchy.Bandwidth, error) {
	// What is written as 1e-10000000 would take it seconds, and as much again for each digit.
	if i := strings.IndexAny(s, "eE"); len(s) > 64 || i >= 0 && len(s)-i > len("e+15") {
		return 0, fmt.Errorf("%.64q is no quantity between 1k and 1P: write bits per second, as in 10M", s)
	}
	q, err := resource.ParseQuantity(s)
	if err != nil {
		return 0, fmt.Errorf("%q is no quantity: write bits per second, as in 10M", s)
	}
	v := q.Value()
	if v < int64(hierarchy.Kbit) || v > int64(1000*hierarchy.Tbit) {
		return 0, fmt.Errorf("%q is not between 1k and 1P bits per second", s)
	}
	if b := hierarchy.Bandwidth(v); b < hierarchy.MaxBandwidth {
		return b, nil
	}
	return hierarchy.MaxBandwidth, nil
}
