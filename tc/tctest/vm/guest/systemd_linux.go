package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	disk     = "/dev/ubda"
	rebooted = "/rebooted" // is on the disk after a reboot
	unitArg  = "unit"
)

// units are what this program adds to the disk's: all that a machine starts by itself,
// and then the job.
var units = map[string]string{
	"default.target": "[Unit]\nRequires=multi-user.target\nAfter=multi-user.target\nWants=vm-job.service\n",
	"vm-job.service": "[Unit]\nAfter=multi-user.target\n" +
		"[Service]\nExecStart=" + Base + "/init " + unitArg + "\nLimitNOFILE=65536\nLimitMEMLOCK=infinity\nTasksMax=infinity\n",
}

// base is the folder of this program, and of all that came with it.
func base() string {
	self, err := os.Executable()
	if err != nil || filepath.Dir(self) == "/" {
		return "" // without /proc this is the first process
	}
	return filepath.Dir(self)
}

// systemd makes the disk the root, where what is the root now is [Base], and becomes
// systemd.
func systemd() error {
	const root = "/mnt"
	if err := errors.Join(
		mount("devtmpfs", "/dev", ""),
		mount("proc", "/proc", ""),
		unix.Mount(disk, root, "ext4", 0, ""),
		mount("tmpfs", root+"/run", "mode=755"),
		os.MkdirAll(root+"/run/systemd/system", 0o755),
		os.WriteFile("/proc/sys/kernel/modprobe", []byte(Base+"/sbin/modprobe"), 0),
	); err != nil {
		return err
	}
	for name, text := range units {
		if err := os.WriteFile(filepath.Join(root, "run/systemd/system", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	// The kernel's own threads share the root with this process, not with those
	// that it starts: what they call as modprobe is looked up in the new one.
	if err := errors.Join(
		unix.Mount("/", root+Base, "", unix.MS_BIND, ""),
		unix.Mount("/dev", root+"/dev", "", unix.MS_MOVE, ""),
		unix.Mount("/proc", root+"/proc", "", unix.MS_MOVE, ""),
		unix.Chdir(root),
		unix.Mount(".", "/", "", unix.MS_MOVE, ""),
		unix.Chroot("."),
	); err != nil {
		return err
	}
	return unix.Exec("/lib/systemd/systemd", []string{"systemd"}, os.Environ())
}

// now is what is left of the job.
func (j Job) now() (Job, error) {
	_, err := os.Stat(rebooted)
	if err == nil {
		j.Reboot, j.Env = false, append(j.Env, Rebooted+"=1")
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return j, err
}

// reboot is that of an administrator: units are stopped, the disk is unmounted.
func reboot() error {
	if err := os.WriteFile(rebooted, nil, 0o644); err != nil {
		return err
	}
	if out, err := exec.Command("systemctl", "reboot").CombinedOutput(); err != nil {
		return fmt.Errorf("systemctl reboot: %w: %s", err, out)
	}
	return nil
}
