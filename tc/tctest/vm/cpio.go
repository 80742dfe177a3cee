//go:build linux

package vm

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// cpio writes an archive in the "newc" format, that of an initramfs
// (Documentation/driver-api/early-userspace/buffer-format.rst, v6.12). The
// first error is kept; later calls do nothing.
type cpio struct {
	w    *bufio.Writer
	at   int
	ino  int
	seen map[string]bool
	err  error
}

func newCPIO(w io.Writer) *cpio {
	return &cpio{w: bufio.NewWriterSize(w, 1<<20), seen: map[string]bool{}}
}

func (c *cpio) write(b []byte) {
	if c.err == nil {
		_, c.err = c.w.Write(b)
		c.at += len(b)
	}
}

func (c *cpio) pad() {
	if n := -c.at & 3; n > 0 {
		c.write(make([]byte, n))
	}
}

// entry adds name and the directories above it; one that is there already is
// left as it is.
func (c *cpio) entry(name string, mode uint32, major, minor int, data []byte) {
	name = strings.TrimPrefix(name, "/")
	if c.seen[name] {
		return
	}
	if d := filepath.Dir(name); d != "." {
		c.dir(d)
	}
	c.seen[name] = true
	c.ino++
	c.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		c.ino, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name))
	c.pad()
	c.write(data)
	c.pad()
}

func (c *cpio) dir(name string)                         { c.entry(name, 0o040755, 0, 0, nil) }
func (c *cpio) device(name string, major, minor int)    { c.entry(name, 0o020600, major, minor, nil) }
func (c *cpio) symlink(name, target string)             { c.entry(name, 0o120777, 0, 0, []byte(target)) }
func (c *cpio) file(name string, mode uint32, b []byte) { c.entry(name, 0o100000|mode, 0, 0, b) }

// copy adds a file of the host.
func (c *cpio) copy(name, from string, mode uint32) {
	b, err := os.ReadFile(from)
	if err != nil && c.err == nil {
		c.err = err
	}
	c.file(name, mode, b)
}

// copyTree adds the files below a directory of the host, and those that links in it
// lead to.
func (c *cpio) copyTree(name, from string) {
	err := filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := os.Stat(p)
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		c.copy(filepath.Join(name, rel), p, uint32(info.Mode().Perm()))
		return c.err
	})
	if err != nil && c.err == nil {
		c.err = err
	}
}

func (c *cpio) close() error {
	c.entry("TRAILER!!!", 0, 0, 0, nil)
	if c.err != nil {
		return c.err
	}
	return c.w.Flush()
}
