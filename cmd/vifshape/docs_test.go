package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// pages are what people read before they have the program.
var pages = []string{"README.md", "CONTRIBUTING.md", "examples/README.md", "examples/coming-from.md"}

// typed are the lines of a page that are to be typed, without the program's name: between
// backticks, and in blocks at the beginning of a line or behind a prompt.
func typed(text string) (all []string) {
	block := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "```") {
			block = !block
			continue
		}
		pattern := "`vifshape ([^`]+)`"
		if block {
			pattern = `^(?:\$ |sudo )?vifshape ([^&#\n]+)`
		}
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(line, -1) {
			command, _, _ := strings.Cut(m[1], "|")
			all = append(all, command)
		}
	}
	return all
}

// What the pages tell to type are commands and flags that there are.
func TestPagesCommands(t *testing.T) {
	for _, page := range pages {
		text, err := os.ReadFile(filepath.Join("../..", page))
		if err != nil {
			t.Fatal(err)
		}
		lines := typed(string(text))
		for _, l := range lines {
			if _, err := called(l); err != nil {
				t.Errorf("%s: `vifshape %s`: %v", page, l, err)
			}
		}
		if len(lines) == 0 {
			t.Errorf("%s tells to type nothing", page)
		}
	}
}

// So are the lines of vifshape alone, which are complete: they have the arguments that
// their commands take.
func TestDaily(t *testing.T) {
	lines := setIn(daily)
	for _, l := range lines {
		if c, err := called(l); err != nil {
			t.Errorf("`vifshape %s`: %v", l, err)
		} else if err := c.ValidateArgs(c.Flags().Args()); err != nil {
			t.Errorf("`vifshape %s`: %v", l, err)
		}
	}
	if want := 1 + strings.Count(daily, "\n  vifshape "); len(lines) != want || want < 6 {
		t.Errorf("%d lines are read of %d: %q", len(lines), want, lines)
	}
}

// And so are the commands that somebody is told who has typed another tool's word, which is
// none here.
func TestOtherCommands(t *testing.T) {
	for word, here := range otherCommands {
		if _, err := called(here); err != nil {
			t.Errorf("%s is told `vifshape %s`: %v", word, here, err)
		}
		if _, err := called(word); err == nil {
			t.Errorf("%s is a command", word)
		}
	}
}

// And so is what help shows, of each command and topic.
func TestHelpCommands(t *testing.T) {
	root := newRootCommand(&env{stdout: &strings.Builder{}, stderr: &strings.Builder{}}, nil)
	texts := map[string]string{"help": root.Long}
	for _, c := range root.Commands() {
		texts["help "+c.Name()] = c.Long
	}
	for _, about := range topics {
		texts["help "+about.name] = about.text()
	}
	read := 0
	for name, text := range texts {
		for _, l := range append(setIn(text), typed(text)...) {
			read++
			if _, err := called(l); err != nil {
				t.Errorf("%s: `vifshape %s`: %v", name, l, err)
			}
		}
	}
	if read < 50 {
		t.Errorf("help shows %d lines only", read)
	}
}

// setIn are the lines of a text that are set in and begin with the program's name, without
// it and what is said of them.
func setIn(text string) (all []string) {
	for _, m := range regexp.MustCompile(`(?m)^ +(?:\$ |sudo )?vifshape (\S+(?: \S+)*)`).FindAllStringSubmatch(text, -1) {
		command, _, _ := strings.Cut(m[1], " > ")
		command, _, _ = strings.Cut(command, " | ")
		all = append(all, command)
	}
	return all
}

// called is the command that a line calls, which has its flags.
func called(line string) (*cobra.Command, error) {
	root := newRootCommand(&env{stdout: &strings.Builder{}, stderr: &strings.Builder{}}, nil)
	root.InitDefaultHelpCmd()
	c, rest, err := root.Find(strings.Fields(line))
	if err != nil || c == root {
		return nil, errors.New("there is no such command")
	}
	return c, c.ParseFlags(rest)
}

// Links of the pages lead to files, and examples/README.md to each example.
func TestPages(t *testing.T) {
	linked := map[string]bool{}
	for _, page := range pages {
		text, err := os.ReadFile(filepath.Join("../..", page))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\]\(([^)#]+)\)`).FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			file := filepath.Join(filepath.Dir(page), m[1])
			linked[page+" "+file] = true
			if _, err := os.Stat(filepath.Join("../..", file)); err != nil {
				t.Errorf("%s: %v", page, err)
			}
		}
	}
	files, err := filepath.Glob("../../examples/*")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d examples: %v", len(files), err)
	}
	for _, f := range files {
		name := "examples/" + filepath.Base(f)
		if ext := filepath.Ext(f); ext != ".go" && name != "examples/README.md" && !linked["examples/README.md "+name] {
			t.Errorf("examples/README.md does not name %s", name)
		}
	}
}

// The README's line for apt has every package whose program .ci/run looks for.
func TestPagesPackages(t *testing.T) {
	run, err := os.ReadFile("../../.ci/run")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^apt-get install (.*)$`).FindStringSubmatch(string(page))
	_, list, ok := strings.Cut(string(run), "\nfor p in ")
	list, _, ok2 := strings.Cut(list, "; do\n")
	if line == nil || !ok || !ok2 {
		t.Fatal("they are not written as this test reads them")
	}
	installed := strings.Fields(line[1])
	for _, word := range strings.Fields(strings.ReplaceAll(list, "\\\n", " ")) {
		if program, name, _ := strings.Cut(word, ":"); !slices.Contains(installed, name) {
			t.Errorf("%s, of package %s", program, name)
		}
	}
}
