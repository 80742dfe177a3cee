//go:build linux

package vm

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm/guest"
)

//go:embed build-root.sh
var rootScript string

// rootImage is the disk of [Systemd] in its directory of the cache.
const rootImage = "root.ext4"

// findRoot finds the disk of [Systemd], or makes it.
func findRoot(ctx context.Context) (string, error) {
	sum := sha256.Sum256([]byte(rootScript))
	c := cached{
		dir:  fmt.Sprintf("systemd-%x", sum[:4]),
		made: []string{"apt-get", "mmdebstrap", "mke2fs"},
		provide: func(ctx context.Context, dir string) error {
			_, err := command(ctx, dir, "sh", "-c", rootScript, "build-root.sh", filepath.Join(dir, rootImage))
			return err
		},
	}
	dir, err := c.get(ctx, func(dir string) error {
		_, err := os.Stat(filepath.Join(dir, rootImage))
		return err
	})
	return filepath.Join(dir, rootImage), err
}

// OnSystemd boots a machine of [Systemd] in which it calls booted, and rebooted after a
// reboot if that succeeded: for a test whose one statement it is. They are its subtests
// of those names there, also with vmrun. The rules of [Matrix] hold.
func OnSystemd(t *testing.T, booted, rebooted func(*testing.T)) {
	if !Inside() {
		Matrix(t, Guest{Kernel: Systemd(), Tests: "^" + t.Name() + "$", Reboot: true})
		return
	}
	_, err := os.Stat("/run/systemd/system") // sd_booted(3)
	tctest.Require(t, err == nil, "systemd as the first process")
	if os.Getenv(guest.Rebooted) == "" {
		t.Run("booted", booted)
	} else {
		t.Run("rebooted", rebooted)
	}
}
