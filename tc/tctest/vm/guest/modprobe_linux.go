package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// modprobe is what the kernel calls as "/sbin/modprobe -q -- NAME" when it
// wants a module that it has not.
func modprobe(args []string) int {
	list, err := os.ReadFile(base() + Modules)
	if err != nil {
		fmt.Fprintln(os.Stderr, "modprobe:", err)
		return 1
	}
	db := readModules(string(list))
	status := 0
	for _, a := range args {
		if strings.HasPrefix(a, "-") {
			continue
		}
		if err := db.probe(a, load); err != nil {
			fmt.Fprintf(os.Stderr, "modprobe: %s: %v\n", a, err)
			status = 1
		}
	}
	return status
}

type module struct {
	name           string
	needs, aliases []string
}

type modules []module

func readModules(list string) modules {
	var db modules
	for line := range strings.Lines(list) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) == 3 {
			db = append(db, module{f[0], strings.Fields(f[1]), strings.Fields(f[2])})
		}
	}
	return db
}

// probe loads what is called name, or else all that have it as an alias, with
// what they need first.
func (db modules) probe(name string, load func(string) error) error {
	name = ModuleName(name)
	var found []module
	for _, m := range db {
		if m.name == name {
			found = []module{m}
			break
		}
		for _, a := range m.aliases {
			if ok, err := filepath.Match(ModuleName(a), name); err == nil && ok {
				found = append(found, m)
				break
			}
		}
	}
	if len(found) == 0 {
		return errors.New("no such module")
	}
	var errs []error
	done := map[string]bool{}
	for _, m := range found {
		errs = append(errs, db.load(m.name, done, load))
	}
	return errors.Join(errs...)
}

func (db modules) load(name string, done map[string]bool, load func(string) error) error {
	if done[name] {
		return nil
	}
	done[name] = true
	for _, m := range db {
		if m.name != name {
			continue
		}
		for _, n := range m.needs {
			n, optional := strings.CutPrefix(n, "?")
			if err := db.load(n, done, load); err != nil && !optional {
				return err
			}
		}
		return load(name)
	}
	return nil // built into the kernel
}

// load puts one module into the kernel. One that is there already is no error.
func load(name string) error {
	f, err := os.Open(filepath.Join(base(), ModuleDir, name+".ko"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
