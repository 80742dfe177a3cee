// Command weigh prints what each module that the program is linked with costs: the
// bytes of its code and data, and the time in which its packages are initialised at
// every start. It takes the directory of the program, else it is cmd/vifshape.
package main

import (
	"bytes"
	"cmp"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
)

// starts is how often the program is started: the median counts.
const starts = 21

func main() {
	dir := "./cmd/vifshape"
	if len(os.Args) > 1 {
		dir = os.Args[1]
	}
	if err := weigh(dir); err != nil {
		fmt.Fprintln(os.Stderr, "weigh:", err)
		os.Exit(1)
	}
}

// weight is what one module costs.
type weight struct {
	module string
	bytes  uint64
	allocs int       // when its packages are initialised
	starts []float64 // the time that this takes, in milliseconds
}

const (
	standard = "the standard library"
	nobody   = "the Go runtime and what is no package's"
)

func weigh(dir string) error {
	work, err := os.MkdirTemp("", "weigh")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	program := filepath.Join(work, "program")
	if _, err := output("go", "build", "-o", program, dir); err != nil {
		return err
	}
	info, err := os.Stat(program)
	if err != nil {
		return err
	}
	all, err := weightsOf(program, dir)
	if err != nil {
		return err
	}
	return write(all, info.Size())
}

// weightsOf weighs a program that was built from a directory.
func weightsOf(program, dir string) ([]*weight, error) {
	modules, err := modulesOf(dir)
	if err != nil {
		return nil, err
	}
	var all []*weight
	of := func(pkg string) *weight {
		m := cmp.Or(modules[pkg], nobody)
		i := slices.IndexFunc(all, func(w *weight) bool { return w.module == m })
		if i < 0 {
			i = len(all)
			all = append(all, &weight{module: m})
		}
		return all[i]
	}
	file, err := elf.Open(program)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	symbols, err := file.Symbols()
	if err != nil {
		return nil, err
	}
	for _, s := range symbols {
		if int(s.Section) < len(file.Sections) && file.Sections[s.Section].Type != elf.SHT_NOBITS {
			of(packageOf(s.Name)).bytes += s.Size
		}
	}
	for range starts {
		c := exec.Command(program, "version")
		c.Env = append(os.Environ(), "GODEBUG=inittrace=1")
		var trace bytes.Buffer
		c.Stderr = &trace
		if err := c.Run(); err != nil {
			return nil, fmt.Errorf("%s: %w", program, err)
		}
		for _, w := range all {
			w.starts, w.allocs = append(w.starts, 0), 0
		}
		for line := range strings.Lines(trace.String()) {
			var pkg string
			var at, ms float64
			var bytes, allocs int
			if n, _ := fmt.Sscanf(line, "init %s @%f ms, %f ms clock, %d bytes, %d allocs", &pkg, &at, &ms, &bytes, &allocs); n != 5 {
				continue
			}
			w := of(pkg)
			w.allocs += allocs
			w.starts[len(w.starts)-1] += ms
		}
	}
	for _, w := range all {
		slices.Sort(w.starts)
	}
	slices.SortFunc(all, func(a, b *weight) int { return cmp.Compare(b.bytes, a.bytes) })
	return all, nil
}

func write(all []*weight, size int64) error {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "kB\tms a start\tallocations\t  ")
	var sum weight
	ms := 0.0
	for _, w := range all {
		median := w.starts[len(w.starts)/2]
		fmt.Fprintf(t, "%d\t%.3f\t%d\t  %s\n", w.bytes/1000, median, w.allocs, w.module)
		sum.bytes += w.bytes
		sum.allocs += w.allocs
		ms += median
	}
	fmt.Fprintf(t, "%d\t%.3f\t%d\t  all of it; the file with its tables has %d kB\n", sum.bytes/1000, ms, sum.allocs, size/1000)
	return t.Flush()
}

// modulesOf is the module of each package that the program in a directory is built
// from. The standard library is one.
func modulesOf(dir string) (map[string]string, error) {
	out, err := output("go", "list", "-deps", "-f", "{{.ImportPath}} {{if .Standard}}"+standard+"{{else}}{{.Module.Path}}{{end}}", dir)
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for line := range strings.Lines(string(out)) {
		pkg, module, _ := strings.Cut(strings.TrimSpace(line), " ")
		all[pkg], all["main"] = module, module // the program itself comes last
	}
	return all, nil
}

// packageOf is the package of a symbol such as "net/http.(*Client).Do",
// "type:*net/http.Client" or "go:itab.*os.File,io.Writer".
func packageOf(symbol string) string {
	for _, prefix := range []string{"type:.eq.", "type:.hash.", "type:", "go:itab."} {
		symbol = strings.TrimPrefix(symbol, prefix)
	}
	symbol = strings.TrimLeft(symbol, "*[]0123456789")
	if end := strings.IndexAny(symbol, "([{,; "); end >= 0 {
		symbol = symbol[:end]
	}
	slash := strings.LastIndexByte(symbol, '/')
	dot := strings.IndexByte(symbol[slash+1:], '.')
	if dot < 0 {
		return symbol
	}
	return strings.ReplaceAll(symbol[:slash+1+dot], "%2e", ".")
}

func output(name string, args ...string) ([]byte, error) {
	c := exec.Command(name, args...)
	c.Stderr = os.Stderr
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(c.Args, " "), err)
	}
	return out, nil
}
