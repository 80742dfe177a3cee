package cgroup_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/tctest"
)

// runcBeside has runc run a container when net_cls has been mounted for bindings, and the run
// directory is covered since, as /run may be where a runtime has a mount namespace of its own.
func runcBeside(how, dir, bundle string) error {
	if err := unmountNetCls(how, dir+"/v1"); err != nil {
		return err
	}
	runDir := dir + "/run"
	b, err := cgroup.NewBinder(cgroup.Config{Hook: blind{}, Interface: "eth0", Ways: []bind.Way{bind.WayNetCls}, RunDir: runDir})
	if err != nil {
		return err
	}
	defer b.Close()
	if _, err := b.Hook(0); err != nil {
		return err
	}
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", runDir, "tmpfs", 0, ""); err != nil {
		return err
	}
	cmd := exec.Command("runc", "--root", runDir+"/runc", "run", "--bundle", bundle, "beside")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// TestRuncBesideNetCls: where vifshape has mounted net_cls, runc starts containers as before; and
// where it goes by v1 they are in that hierarchy as in the others, so that they can be bound.
func TestRuncBesideNetCls(t *testing.T) {
	require(t, bind.WayNetCls)
	tctest.RequireProgram(t, "runc")
	busybox, err := os.ReadFile(tctest.RequireProgram(t, "busybox"))
	if err != nil {
		t.Fatal(err)
	}
	tctest.Cgroup2Mount(t)
	for _, tt := range []struct {
		name, how string
		v1        bool
	}{
		{"as distributions do", "v1", true},
		{"elsewhere", "elsewhere", true},
		{"v2", "v2", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bundle, group := t.TempDir(), "/"+tctest.Name()
			for _, d := range []string{"bin", "proc", "sys/fs/cgroup"} {
				if err := os.MkdirAll(filepath.Join(bundle, "rootfs", d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(bundle+"/rootfs/bin/cat", busybox, 0o755); err != nil {
				t.Fatal(err)
			}
			type object = map[string]any
			config, err := json.Marshal(object{
				"ociVersion": "1.0.2",
				"process":    object{"cwd": "/", "args": []string{"/bin/cat", "/proc/self/cgroup"}, "user": object{"uid": 0, "gid": 0}},
				"root":       object{"path": "rootfs"},
				"mounts": []object{
					{"destination": "/proc", "type": "proc", "source": "proc"},
					{"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": []string{"ro"}},
				},
				"linux": object{"cgroupsPath": group, "namespaces": []object{{"type": "pid"}, {"type": "mount"}}},
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(bundle+"/config.json", config, 0o644); err != nil {
				t.Fatal(err)
			}
			cmd := tctest.Command(t, "runcBeside", tt.how, t.TempDir(), bundle)
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			in := map[bool]string{}
			for line := range strings.Lines(string(out)) {
				f := strings.SplitN(strings.TrimSpace(line), ":", 3)
				if len(f) == 3 && (f[1] == "net_cls" || f[1] == "") {
					in[f[1] != ""] = f[2]
				}
			}
			if in[tt.v1] != group {
				t.Errorf("a container of %s is in these:\n%s", group, out)
			}
		})
	}
}
