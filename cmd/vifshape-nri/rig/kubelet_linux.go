package rig

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Cluster is what a manifest relies on besides itself.
type Cluster struct {
	Images map[string]string // by what containers call them
	Env    map[string]string // variables that each container has
}

// Workload is a pod that was made of a manifest.
type Workload struct {
	*Pod
	cluster    Cluster
	from       map[string]volume
	containers []*container
}

type container struct {
	core.Container
	id      string
	attempt uint32
}

// Masked and read-only paths are those of a kubelet (defaultMaskedPaths and ReadonlyPaths,
// pkg/securitycontext/util.go, v1.34).
var (
	masked = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
		"/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	readOnly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// Deploy starts what a template of pods describes, as a kubelet does: by CRI, with all that it
// says of security. What this does not know of a manifest ends the test, and is not passed over.
func (r *Rig) Deploy(namespace, name string, t core.PodTemplateSpec, c Cluster) *Workload {
	r.t.Helper()
	rest := t.Spec
	rest.HostNetwork, rest.HostPID, rest.Containers, rest.Volumes = false, false, nil, nil
	// the scheduler's, the API server's, and how it ends
	rest.AutomountServiceAccountToken, rest.PriorityClassName, rest.Tolerations, rest.TerminationGracePeriodSeconds = nil, "", nil, nil
	r.all("pod "+name, rest)
	w := &Workload{cluster: c, Pod: r.Pod(Spec{Namespace: namespace, Name: name, Labels: t.Labels, Annotations: t.Annotations, HostNetwork: t.Spec.HostNetwork, HostPID: t.Spec.HostPID})}
	r.t.Cleanup(func() {
		for _, c := range w.containers {
			if r.t.Failed() {
				r.t.Logf("%s:\n%s", c.Name, w.Log(c.Name))
			}
		}
	})
	w.from = r.volumes(t.Spec.Volumes)
	for _, c := range t.Spec.Containers {
		w.containers = append(w.containers, &container{Container: c})
		w.Start(c.Name)
	}
	return w
}

// Start starts a container, again after [Workload.Stop].
func (w *Workload) Start(name string) {
	w.r.t.Helper()
	c := w.container(name)
	config := w.config(c.Container)
	config.Metadata.Attempt = c.attempt
	c.attempt++
	var err error
	if c.id, err = w.start(config); err != nil {
		w.r.t.Fatalf("container %s: %v", name, err)
	}
}

// Stop asks a container to end, and waits until it has.
func (w *Workload) Stop(name string) {
	w.r.t.Helper()
	ctx, cancel := w.r.context()
	defer cancel()
	id := w.container(name).id
	_, err := w.r.cri.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: int64(limit.Seconds())})
	s, err2 := w.r.state(id)
	if err := errors.Join(err, err2); err != nil || s.ExitCode != 0 {
		w.r.t.Fatalf("container %s: %v, %v", name, s, err)
	}
}

// all ends the test where something of a manifest is left.
func (r *Rig) all(what string, left any) {
	r.t.Helper()
	v := reflect.ValueOf(left)
	for i := range v.NumField() {
		if !v.Field(i).IsZero() {
			r.t.Fatalf("%s: %s is nothing that this kubelet knows", what, v.Type().Field(i).Name)
		}
	}
}

// volume is what is mounted of one.
type volume struct {
	path     string
	readOnly bool
}

func (r *Rig) volumes(all []core.Volume) map[string]volume {
	r.t.Helper()
	from := map[string]volume{}
	for _, v := range all {
		s := v.VolumeSource
		switch {
		case s.ConfigMap != nil:
			from[v.Name] = volume{configMaps + s.ConfigMap.Name, true}
		case s.HostPath != nil && s.HostPath.Type != nil:
			if err := r.enter(func() error {
				if *s.HostPath.Type == core.HostPathDirectoryOrCreate {
					return os.MkdirAll(s.HostPath.Path, 0o755)
				}
				st, err := os.Stat(s.HostPath.Path)
				if err == nil && (*s.HostPath.Type != core.HostPathDirectory || !st.IsDir()) {
					err = fmt.Errorf("it is no %s", *s.HostPath.Type)
				}
				return err
			}); err != nil {
				r.t.Fatalf("volume %s: %s: %v", v.Name, s.HostPath.Path, err)
			}
			from[v.Name] = volume{path: s.HostPath.Path}
		default:
			r.t.Fatalf("volume %s: %+v is nothing that this kubelet knows", v.Name, s)
		}
	}
	return from
}

// configMaps is where they are.
const configMaps = "/run/rig/configmaps/"

// ConfigMap makes one, or changes it, all at once: its files are links into a folder that is
// another one each time (AtomicWriter, pkg/volume/util/atomic_writer.go of Kubernetes, v1.34).
func (r *Rig) ConfigMap(name string, data map[string]string) {
	r.t.Helper()
	dir := r.Path(configMaps + name)
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	folder := time.Now().UTC().Format("..2006_01_02_15_04_05.000000000")
	if err == nil {
		err = os.Mkdir(filepath.Join(dir, folder), 0o755)
	}
	for name, text := range data {
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, folder, name), []byte(text), 0o644)
		}
	}
	was, _ := os.Readlink(filepath.Join(dir, "..data")) // none: it is new
	if err == nil {
		err = os.Symlink(folder, filepath.Join(dir, "..data_tmp"))
	}
	if err == nil {
		err = os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data"))
	}
	for name := range data {
		if to := "..data/" + name; err == nil {
			if err = os.Symlink(to, filepath.Join(dir, name)); errors.Is(err, fs.ErrExist) {
				err = nil
			}
		}
	}
	if err == nil && was != "" {
		err = os.RemoveAll(filepath.Join(dir, was))
	}
	if err != nil {
		r.t.Fatalf("ConfigMap %s: %v", name, err)
	}
}

// config is a container in the words of CRI.
func (w *Workload) config(c core.Container) *runtimeapi.ContainerConfig {
	w.r.t.Helper()
	image := w.cluster.Images[c.Image]
	if image == "" || c.SecurityContext == nil {
		w.r.t.Fatalf("container %s: image %q, security %v", c.Name, c.Image, c.SecurityContext)
	}
	rest := c
	rest.Name, rest.Image, rest.Command, rest.Args, rest.SecurityContext, rest.VolumeMounts = "", "", nil, nil, nil, nil
	rest.Resources, rest.ReadinessProbe, rest.Ports = core.ResourceRequirements{}, nil, nil
	w.r.all("container "+c.Name, rest)
	config := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: c.Name},
		Image:    &runtimeapi.ImageSpec{Image: image},
		Command:  w.expand(c.Command), Args: w.expand(c.Args),
		LogPath: w.ID + "-" + c.Name, // of all its attempts
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{
				CpuShares:          c.Resources.Requests.Cpu().MilliValue() * 1024 / 1000,
				MemoryLimitInBytes: c.Resources.Limits.Memory().Value(),
			},
			SecurityContext: w.security(c.Name, *c.SecurityContext),
		},
	}
	for name, value := range w.cluster.Env {
		config.Envs = append(config.Envs, &runtimeapi.KeyValue{Key: name, Value: []byte(value)})
	}
	for _, m := range c.VolumeMounts {
		s, ok := w.from[m.Name]
		if !ok || m.SubPath != "" || m.MountPropagation != nil {
			w.r.t.Fatalf("container %s: there is no such volume: %+v", c.Name, m)
		}
		config.Mounts = append(config.Mounts, &runtimeapi.Mount{ContainerPath: m.MountPath, HostPath: s.path, Readonly: m.ReadOnly || s.readOnly})
	}
	return config
}

// expand puts in variables, as $(NAME).
func (w *Workload) expand(words []string) []string {
	var in []string
	for name, value := range w.cluster.Env {
		in = append(in, "$("+name+")", value)
	}
	var all []string
	for _, s := range words {
		all = append(all, strings.NewReplacer(in...).Replace(s))
	}
	return all
}

// security says what a container may, with what holds where its manifest says nothing. AppArmor's
// default is then the runtime's, where the kernel has that at all.
func (w *Workload) security(name string, s core.SecurityContext) *runtimeapi.LinuxContainerSecurityContext {
	w.r.t.Helper()
	is := &runtimeapi.LinuxContainerSecurityContext{
		Privileged:       s.Privileged != nil && *s.Privileged,
		NamespaceOptions: w.Pod.config.Linux.SecurityContext.NamespaceOptions,
		ReadonlyRootfs:   s.ReadOnlyRootFilesystem != nil && *s.ReadOnlyRootFilesystem,
		NoNewPrivs:       s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation,
		MaskedPaths:      masked, ReadonlyPaths: readOnly,
		Capabilities: &runtimeapi.Capability{},
		Seccomp:      &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined},
	}
	if s.RunAsUser != nil {
		is.RunAsUser = &runtimeapi.Int64Value{Value: *s.RunAsUser}
	}
	if s.RunAsNonRoot != nil && *s.RunAsNonRoot && (s.RunAsUser == nil || *s.RunAsUser == 0) {
		w.r.t.Fatalf("container %s: it would be root", name)
	}
	if c := s.Capabilities; c != nil {
		for _, c := range c.Add {
			is.Capabilities.AddCapabilities = append(is.Capabilities.AddCapabilities, string(c))
		}
		for _, c := range c.Drop {
			is.Capabilities.DropCapabilities = append(is.Capabilities.DropCapabilities, string(c))
		}
	}
	if p := s.SeccompProfile; p != nil && p.Type == core.SeccompProfileTypeRuntimeDefault {
		is.Seccomp.ProfileType = runtimeapi.SecurityProfile_RuntimeDefault
	} else if p != nil && p.Type != core.SeccompProfileTypeUnconfined {
		w.r.t.Fatalf("container %s: seccomp %s is nothing that this kubelet knows", name, p.Type)
	}
	if p := s.AppArmorProfile; p != nil && p.Type == core.AppArmorProfileTypeUnconfined {
		is.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	} else if p != nil {
		w.r.t.Fatalf("container %s: AppArmor's %s is nothing that this kubelet knows", name, p.Type)
	}
	if o := s.SELinuxOptions; o != nil {
		is.SelinuxOptions = &runtimeapi.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
	}
	s.Privileged, s.ReadOnlyRootFilesystem, s.AllowPrivilegeEscalation, s.Capabilities, s.SeccompProfile, s.AppArmorProfile, s.SELinuxOptions, s.RunAsUser, s.RunAsNonRoot = nil, nil, nil, nil, nil, nil, nil, nil, nil
	w.r.all("container "+name, s)
	return is
}

func (w *Workload) container(name string) *container {
	w.r.t.Helper()
	i := slices.IndexFunc(w.containers, func(c *container) bool { return c.Name == name })
	if i < 0 {
		w.r.t.Fatalf("there is no container %s", name)
	}
	return w.containers[i]
}

// Log is what a container has printed so far.
func (w *Workload) Log(name string) string {
	b, err := os.ReadFile(w.r.Path(filepath.Join(logs, w.ID+"-"+name)))
	if err != nil {
		return err.Error()
	}
	var text strings.Builder
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(line, " ", 4); len(f) == 4 { // its time, stream, and whether it is whole
			text.WriteString(f[3])
		}
	}
	return text.String()
}

// Says waits until a container has printed a text.
func (w *Workload) Says(name, text string) {
	w.r.t.Helper()
	id := w.container(name).id
	w.r.Until(name+" says "+text, func() bool {
		if strings.Contains(w.Log(name), text) {
			return true
		}
		s, err := w.r.state(id)
		if err != nil || s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			w.r.t.Fatalf("%s: %v, %v", name, s, err)
		}
		return false
	})
}

// Exec runs a program in a container, and returns its exit status and what it printed.
func (w *Workload) Exec(name string, command ...string) (code int, said string) {
	w.r.t.Helper()
	return w.exec(w.container(name).id, command, limit)
}

func (w *Workload) exec(id string, command []string, limit time.Duration) (code int, said string) {
	w.r.t.Helper()
	ctx, cancel := w.r.context()
	defer cancel()
	is, err := w.r.cri.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: int64(limit.Seconds())})
	if err != nil {
		w.r.t.Fatalf("%q: %v", command, err)
	}
	return int(is.ExitCode), string(is.Stdout) + string(is.Stderr)
}

// Ready asks a container by its readiness probe, once, and returns what the probe said. One that
// takes longer than it may ends the test.
func (w *Workload) Ready(name string) (ready bool, said string) {
	w.r.t.Helper()
	c := w.container(name)
	probe := c.ReadinessProbe
	if probe == nil || probe.Exec == nil {
		w.r.t.Fatalf("%s has no probe that runs a program", name)
	}
	code, said := w.exec(c.id, probe.Exec.Command, time.Duration(cmp.Or(probe.TimeoutSeconds, 1))*time.Second)
	return code == 0, fmt.Sprintf("exit status %d: %s", code, said)
}
