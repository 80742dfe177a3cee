package explain

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/socket"
	"github.com/vifshape/vifshape/cmd/internal/words"
)

// mute says whether processes have nothing open by which they could send or receive. Whatever
// nobody knows is a socket.
func mute(pids []int) bool {
	stay := map[string]map[uint64]bool{} // by network namespace
	for _, pid := range pids {
		all, err := socket.Of(pid)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return false
		}
		if len(all) == 0 {
			continue
		}
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			return false
		}
		if stay[ns] == nil {
			stay[ns] = socket.Staying(pid)
		}
		for _, inode := range all {
			if !stay[ns][inode] {
				return false
			}
		}
	}
	return true
}

// children are those of a process that may have something open, as they are written in an
// answer; none on a kernel without CONFIG_PROC_CHILDREN.
func children(of int) (all []string) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", of))
	for _, file := range lists {
		b, _ := os.ReadFile(file) // its thread may have ended
		for _, child := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(child)
			if err != nil || mute([]int{pid}) {
				continue
			}
			if p, err := cgroupfs.ReadProcess(pid); err == nil {
				all = append(all, fmt.Sprintf("%s[%d]", words.Printable(p.Name), pid))
			}
		}
	}
	if n := len(all) - mostChildren; n > 0 {
		all = append(all[:mostChildren], fmt.Sprintf("and %d more", n))
	}
	return all
}

// mostChildren are written, in their order.
const mostChildren = 5
