package rig

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// source is where the version of containerd is pinned, from the top of the repository. It is a
// module of its own: nobody who builds vifshape or its plugin needs it.
const source = ".ci/containerd"

// programs are those that are built, without what a test does not need and needs C.
var programs = []string{
	"github.com/containerd/containerd/v2/cmd/containerd",
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
}

var build = []string{"-trimpath", "-tags=no_btrfs no_devmapper no_zfs no_aufs", "-ldflags=-s -w"}

// Fetch builds containerd unless it is in the cache, and returns the directory of its programs.
// It is called from somewhere in the repository.
func Fetch(ctx context.Context) (string, error) {
	top, err := repository()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(top, source)
	versions, err := run(ctx, dir, "env", "GOVERSION")
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return "", err
		}
		sum.Write(b)
	}
	fmt.Fprint(sum, programs, build)
	name := fmt.Sprintf("containerd-%s-%x", strings.TrimSpace(versions), sum.Sum(nil)[:4])
	return vm.Cached(ctx, name, []string{"go"}, func(ctx context.Context, to string) error {
		_, err := run(ctx, dir, append(append([]string{"build", "-o", to + "/"}, build...), programs...)...)
		return err
	}, func(dir string) error {
		var errs []error
		for _, p := range programs {
			_, err := os.Stat(filepath.Join(dir, filepath.Base(p)))
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}

// repository is its top, above the working directory, which is a package's in a test.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, source, "go.mod")); err == nil {
			return at, nil
		}
		if at == "/" {
			return "", fmt.Errorf("%s is not in the repository of vifshape: no %s above it", dir, source)
		}
	}
}

// run runs go in a directory. The end of ctx also ends what it started.
func run(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		text := strings.TrimSpace(stderr.String())
		return "", fmt.Errorf("go %s: %w: %s", args[0], err, text[max(0, len(text)-1000):])
	}
	return string(out), nil
}
