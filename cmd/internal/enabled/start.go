package enabled

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/examples"
)

// Starter has the agent started with the machine.
type Starter interface {
	// Enable installs what starts a program's agent, unless it is there, and starts the agent
	// now. It says whether it changed anything. It takes root.
	Enable(program string) (changed bool, err error)
	// Disable ends the agent and has it started no more; what Enable installed goes.
	Disable(program string) error
}

// Start is the Starter of this machine. It is an error where there is none.
func Start() (Starter, error) {
	switch {
	case isDir("/run/systemd/system"): // sd_booted(3)
		return systemd{}, nil
	case isDir(filepath.Dir(script)):
		return initScript{}, nil
	}
	return nil, errors.New("neither systemd nor /etc/init.d is here, which would start the agent with the machine: have `vifshape agent --policies " + DefaultDir + "` started by what does")
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// CheckProgram is the error of a program that cannot be started with the machine: one that is
// gone by then, that the unit cannot see, or that others than root may write.
func CheckProgram(program string) error {
	for _, d := range []string{os.TempDir(), "/tmp", "/var/tmp", "/home", "/root", "/run"} {
		if strings.HasPrefix(program, strings.TrimSuffix(d, "/")+"/") {
			return fmt.Errorf("this program is %s, and what is started with the machine is no file below %s: install it first, as with `install %s /usr/local/bin/vifshape`, and call that", program, d, program)
		}
	}
	st, err := os.Stat(program)
	if err != nil {
		return err
	}
	return record.Trusted(program, st)
}

// systemd is the Starter of machines that systemd runs.
type systemd struct{}

const service = "vifshape.service"

// unit is where Enable puts it, where no package brings one.
const unit = "/etc/systemd/system/" + service

func (s systemd) Enable(program string) (changed bool, err error) {
	if !s.there() {
		if changed, err = install(unit, text(examples.Unit, program), 0o644); err != nil {
			return changed, err
		}
		if err := run("systemctl", "daemon-reload"); err != nil {
			return changed, err
		}
	}
	for _, step := range []struct{ is, make string }{{"is-enabled", "enable"}, {"is-active", "start"}} {
		if run("systemctl", "--quiet", step.is, service) == nil {
			continue
		}
		if err := run("systemctl", step.make, service); err != nil {
			return true, err
		}
		changed = true
	}
	return changed, nil
}

// there says whether the unit is installed.
func (systemd) there() bool {
	for _, dir := range []string{filepath.Dir(unit), "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"} { // systemd.unit(5)
		if _, err := os.Stat(filepath.Join(dir, service)); err == nil {
			return true
		}
	}
	return false
}

func (s systemd) Disable(program string) error {
	if !s.there() {
		return nil
	}
	if err := run("systemctl", "disable", "--now", service); err != nil {
		return err
	}
	gone, err := uninstall(unit, text(examples.Unit, program))
	if gone {
		err = errors.Join(err, run("systemctl", "daemon-reload"))
	}
	return err
}

// initScript is the Starter of machines with scripts of init.
type initScript struct{}

const script = "/etc/init.d/vifshape"

// links are the programs that have a script called, each with its words to do so and not to.
var links = []struct {
	program string
	on, off []string
}{
	{"update-rc.d", []string{"vifshape", "defaults"}, []string{"vifshape", "remove"}},
	{"rc-update", []string{"add", "vifshape", "boot"}, []string{"del", "vifshape", "boot"}},
	{"chkconfig", []string{"--add", "vifshape"}, []string{"--del", "vifshape"}},
}

// call has the script called with the machine, or not any more.
func (initScript) call(on bool) error {
	for _, l := range links {
		if _, err := exec.LookPath(l.program); err != nil {
			continue
		}
		if on {
			return run(l.program, l.on...)
		}
		return run(l.program, l.off...)
	}
	return fmt.Errorf("%s is there, and none of update-rc.d, rc-update and chkconfig, which would have it called with the machine: link it by hand", script)
}

func (s initScript) Enable(program string) (changed bool, err error) {
	if changed, err = install(script, text(examples.Init, program), 0o755); err != nil {
		return changed, err
	}
	// Also where it was there: who had it written may not have come so far.
	if err := s.call(true); err != nil {
		return changed, err
	}
	if run(script, "status") == nil {
		return changed, nil
	}
	return true, run(script, "start")
}

func (s initScript) Disable(program string) error {
	if _, err := os.Stat(script); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := run(script, "stop"); err != nil {
		return err
	}
	if _, err := uninstall(script, text(examples.Init, program)); err != nil {
		return err
	}
	return s.call(false)
}

// text is what starts a program.
func text(example, program string) []byte {
	return []byte(strings.ReplaceAll(example, "/usr/local/bin/vifshape", program))
}

// install writes a file, unless there is one: that is somebody's, who may have changed it.
func install(file string, text []byte, mode fs.FileMode) (done bool, err error) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return false, errors.Join(err, os.Remove(file))
	}
	return true, nil
}

// uninstall removes a file that is as install has written it.
func uninstall(file string, text []byte) (done bool, err error) {
	is, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(is, text) {
		return false, record.UnlessGone(err)
	}
	return true, os.Remove(file)
}

// run runs a program of the machine; the error has what it said.
func run(program string, args ...string) error {
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(append([]string{program}, args...), " "), err, bytes.TrimSpace(out))
	}
	return nil
}
