package bpf

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/tctest"
)

// priority runs a program on a packet whose socket is root's and returns the
// priority that it leaves.
func priority(t *testing.T, p *ebpf.Program) hierarchy.ClassID {
	t.Helper()
	const at, size = 32, 192 // of priority in struct __sk_buff
	in, out := make([]byte, size), make([]byte, size)
	binary.NativeEndian.PutUint32(in[at:], 0xdeadbeef)
	packet := make([]byte, 64)
	packet[12] = 8 // IPv4
	ret, err := p.Run(&ebpf.RunOptions{Data: packet, Context: in, ContextOut: out})
	if err != nil {
		t.Fatal(err)
	}
	if int32(ret) != -1 { // TC_ACT_UNSPEC
		t.Errorf("the program returned %d, want -1", int32(ret))
	}
	return hierarchy.ClassID(binary.NativeEndian.Uint32(out[at:]))
}

// TestKernelPrograms runs all forms of the classifier without a network.
func TestKernelPrograms(t *testing.T) {
	tctest.RequireRoot(t)
	for _, name := range []string{classifyProgVifEgress, classifyProgVifEgressPlain, classifyProgVifEgressOld} {
		t.Run(name, func(t *testing.T) {
			if name == classifyProgVifEgress {
				_, err := btf.LoadKernelSpec()
				tctest.Require(t, err == nil, "BTF")
			}
			s, err := loadProgram(bind.WayBPF, name, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer s.close()
			class := hierarchy.ID(0x10)
			if got, want := priority(t, s.prog), hierarchy.ID(hierarchy.RestMinor); got != want {
				t.Errorf("priority %v of an unbound socket, want %v", got, want)
			}
			if err := s.bindNumber(byUser, 0, class); err != nil {
				t.Fatal(err)
			}
			if got := priority(t, s.prog); got != class {
				t.Errorf("priority %v of a bound user's socket, want %v", got, class)
			}
		})
	}
}

// TestKernelGeneration: a generation never becomes 0, which a new socket's empty
// cache would match.
func TestKernelGeneration(t *testing.T) {
	tctest.RequireRoot(t)
	s, err := loadSet(bind.WayBPF, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if err := s.configure(func(c *classifyVifConfig) { c.Generation = ^uint32(0) }); err != nil {
		t.Fatal(err)
	}
	if err := s.publish(); err != nil {
		t.Fatal(err)
	}
	var c classifyVifConfig
	if err := s.config.Lookup(uint32(0), &c); err != nil || c.Generation != 1 {
		t.Errorf("generation %d after the last one, error %v, want 1", c.Generation, err)
	}
}

// TestKernelLevels: only levels at which something is bound are looked at.
func TestKernelLevels(t *testing.T) {
	tctest.RequireRoot(t)
	s, err := loadSet(bind.WayBPF, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	class := hierarchy.ID(0x10)
	levels := func() uint32 {
		var c classifyVifConfig
		if err := s.config.Lookup(uint32(0), &c); err != nil {
			t.Fatal(err)
		}
		return c.Levels
	}
	for id, level := range map[uint64]uint32{100: 2, 200: 5, 300: 5} {
		if err := s.bindCgroup(id, binding{class, level}); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := levels(), uint32(1<<2|1<<5); got != want {
		t.Errorf("levels %b, want %b", got, want)
	}
	for _, id := range []uint64{100, 200} {
		if err := s.cgroups.Delete(id); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.relevel(); err != nil {
		t.Fatal(err)
	}
	if got, want := levels(), uint32(1<<5); got != want {
		t.Errorf("levels %b after removals, want %b", got, want)
	}
	if err := s.bindCgroup(400, binding{class, 0}); err != nil {
		t.Fatal(err)
	}
	if got, want := levels(), ^uint32(1); got != want {
		t.Errorf("levels %b with one unknown, want %b", got, want)
	}
}

// TestGenerated: the committed files are what the source gives, byte for byte.
func TestGenerated(t *testing.T) {
	tctest.RequireProgram(t, "llvm-strip")
	version, err := exec.Command(tctest.RequireProgram(t, "clang"), "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	tctest.Require(t, bytes.Contains(version, []byte("clang version 14.")), "clang 14")
	source, err := os.ReadFile("gen.go")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for line := range strings.Lines(string(source)) {
		line, ok := strings.CutPrefix(line, "//go:generate go tool bpf2go ")
		if !ok {
			continue
		}
		args := append([]string{"tool", "bpf2go", "-output-dir", dir}, strings.Fields(line)...)
		if out, err := exec.Command(tctest.RequireProgram(t, "go"), args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	made, err := filepath.Glob(dir + "/*")
	if err != nil || len(made) < 4 {
		t.Fatalf("made %v, error %v", made, err)
	}
	for _, made := range made {
		name := filepath.Base(made)
		want, err := os.ReadFile(made)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what its source gives: run go generate", name)
		}
	}
}
