package setup

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/tctest"
)

func TestMain(m *testing.M) { tctest.Main(m, verbs) }

var verbs = tctest.Verbs{
	// listen NETWORK ADDRESS waits there for as long as the actor lives
	"listen": func(x tctest.Told) (string, error) {
		var err error
		if x.Args[0] == "udp" {
			_, err = net.ListenPacket(x.Args[0], x.Args[1])
		} else {
			_, err = net.Listen(x.Args[0], x.Args[1])
		}
		return "", err
	},
	// enter DIRECTORY goes into a cgroup
	"enter": func(x tctest.Told) (string, error) {
		return "", os.WriteFile(filepath.Join(x.Args[0], "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	},
	// user NUMBER is that user from then on
	"user": func(x tctest.Told) (string, error) { return "", unix.Setuid(x.Number(0)) },
}
