package rig

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Spec is what is asked for of a pod.
type Spec struct {
	Namespace, Name     string
	Labels, Annotations map[string]string
	HostNetwork         bool
	HostPID             bool // its processes see the node's
}

// Pod is one that was started: its sandbox, and containers as they are added.
type Pod struct {
	ID string
	// Addrs are its addresses, of IPv4 and then of IPv6; none of a pod in the network of the node.
	Addrs []netip.Addr
	// Cgroup is the path of the cgroup that all its containers are below, in every hierarchy.
	Cgroup string

	r      *Rig
	config *runtimeapi.PodSandboxConfig
	count  int // of containers
}

// context is for one request.
func (r *Rig) context() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(r.t.Context()), limit)
}

// Pod starts a pod without a container, and fails the test when that is refused.
func (r *Rig) Pod(s Spec) *Pod {
	r.t.Helper()
	p, err := r.TryPod(s)
	if err != nil {
		r.t.Fatalf("pod %s/%s: %v", s.Namespace, s.Name, err)
	}
	return p
}

// TryPod starts a pod without a container. It may be called from several goroutines.
func (r *Rig) TryPod(s Spec) (*Pod, error) {
	uid := fmt.Sprintf("%s-%s-%d", s.Namespace, s.Name, r.started.Add(1))
	p := &Pod{r: r, Cgroup: r.Cgroup + "/pod" + uid}
	spaces := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_POD, Pid: runtimeapi.NamespaceMode_CONTAINER}
	if s.HostNetwork {
		spaces.Network = runtimeapi.NamespaceMode_NODE
	}
	if s.HostPID {
		spaces.Pid = runtimeapi.NamespaceMode_NODE
	}
	p.config = &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: s.Name, Namespace: s.Namespace, Uid: uid},
		Labels:   s.Labels, Annotations: s.Annotations, LogDirectory: logs,
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    p.Cgroup,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: spaces},
		},
	}
	ctx, cancel := r.context()
	defer cancel()
	made, err := r.cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		return nil, errors.Join(err, p.rmdir())
	}
	p.ID = made.PodSandboxId
	status, err := r.cri.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.ID})
	if err != nil {
		return nil, err
	}
	if n := status.Status.GetNetwork(); n.GetIp() != "" {
		ips := append([]*runtimeapi.PodIP{{Ip: n.Ip}}, n.AdditionalIps...)
		for _, ip := range ips {
			a, err := netip.ParseAddr(ip.Ip)
			if err != nil {
				return nil, err
			}
			p.Addrs = append(p.Addrs, a)
		}
	}
	return p, nil
}

// Start starts a container that runs a command of the image, and returns its id.
func (p *Pod) Start(command ...string) string {
	p.r.t.Helper()
	id, err := p.TryStart(command...)
	if err != nil {
		p.r.t.Fatalf("a container of pod %s: %v", p.config.Metadata.Name, err)
	}
	return id
}

// TryStart is Start, for what may be refused. One goroutine for a pod may call it.
func (p *Pod) TryStart(command ...string) (string, error) {
	p.count++
	return p.start(&runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: fmt.Sprintf("c%d", p.count)},
		Image:    &runtimeapi.ImageSpec{Image: image}, Command: command,
		Linux: &runtimeapi.LinuxContainerConfig{},
	})
}

// start starts a container, and returns its id.
func (p *Pod) start(c *runtimeapi.ContainerConfig) (string, error) {
	ctx, cancel := p.r.context()
	defer cancel()
	made, err := p.r.cri.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, SandboxConfig: p.config, Config: c})
	if err != nil {
		return "", err
	}
	_, err = p.r.cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: made.ContainerId})
	return made.ContainerId, err
}

// Send starts a container that sends as much as it can to an address of the far end, for ever.
func (p *Pod) Send(to netip.Addr) string {
	p.r.t.Helper()
	id, err := p.TrySend(to)
	if err != nil {
		p.r.t.Fatalf("a container of pod %s: %v", p.config.Metadata.Name, err)
	}
	return id
}

// TrySend is Send, for several goroutines.
func (p *Pod) TrySend(to netip.Addr) (string, error) {
	return p.TryStart("sh", "-c", fmt.Sprintf("while :; do yes | nc %s %d; sleep 0.1; done", to, Port))
}

// SendBytes runs a container that sends that many bytes to an address of the far end, as an init
// container may, and waits until they have arrived.
func (p *Pod) SendBytes(to netip.Addr, n uint64) {
	p.r.t.Helper()
	from := p.r.Near4
	if to.Is6() {
		from = p.r.Near6
	}
	for _, a := range p.Addrs {
		if a.Is4() == to.Is4() {
			from = a
		}
	}
	was := p.r.Sink.Bytes(from)
	if code := p.Init("sh", "-c", fmt.Sprintf("head -c %d /dev/zero | nc %s %d", n, to, Port)); code != 0 {
		p.r.t.Fatalf("nc: exit status %d", code)
	}
	p.r.Until("all has arrived", func() bool { return p.r.Sink.Bytes(from) >= was+n })
}

// Init runs a container to its end, as an init container is, and returns its exit status.
func (p *Pod) Init(command ...string) int {
	p.r.t.Helper()
	id := p.Start(command...)
	for {
		s, err := p.r.state(id)
		switch {
		case err != nil:
			p.r.t.Fatal(err)
		case s.State == runtimeapi.ContainerState_CONTAINER_EXITED:
			return int(s.ExitCode)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// state is what has become of a container.
func (r *Rig) state(id string) (*runtimeapi.ContainerStatus, error) {
	ctx, cancel := r.context()
	defer cancel()
	s, err := r.cri.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	return s.GetStatus(), err
}

// Remove stops the pod, at once, and removes it.
func (p *Pod) Remove() {
	p.r.t.Helper()
	if err := p.TryRemove(); err != nil {
		p.r.t.Fatalf("remove pod %s: %v", p.config.Metadata.Name, err)
	}
}

// TryRemove is Remove, for several goroutines.
func (p *Pod) TryRemove() error {
	ctx, cancel := p.r.context()
	defer cancel()
	if _, err := p.r.cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		return err
	}
	if _, err := p.r.cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		return err
	}
	return p.rmdir()
}

// rmdir removes the pod's own cgroup, as a kubelet does.
func (p *Pod) rmdir() error {
	var errs []error
	for _, h := range p.r.hierarchies {
		if err := unix.Rmdir(h + p.Cgroup); err != nil && err != unix.ENOENT {
			errs = append(errs, fmt.Errorf("rmdir %s: %w", h+p.Cgroup, err))
		}
	}
	return errors.Join(errs...)
}
