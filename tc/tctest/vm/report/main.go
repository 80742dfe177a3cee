//go:build linux

// Command report shows a run of the tests as people want to see it:
//
//	go test -json ./... | go run ./tc/tctest/vm/report
//
// It prints what "go test" prints without -json and, at the end, a table of the
// machines that the tests ran on, this one and the guests of package vm that left
// their events in the file VIFSHAPE_VM_EVENTS: how much ran on each, by which
// ways of binding and with which kinds of queueing discipline, and what did not,
// and why. Below it stand the tests that took the longest, and what failed, by name and with
// the last words of each: whoever is shown the end of a long log alone sees what it was.
// Its exit status is 1 when a test failed, or when none ran.
//
// With -failed FILE it writes there what to give to "go test" to run each test that failed
// once more, as "PACKAGE PATTERN" in each line, of a subtest the one right below its test;
// nothing where a package failed for any other reason, as one that does not build.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

func main() {
	failed := flag.String("failed", "", "write to `FILE` what failed, to run it once more")
	flag.Parse()
	ok, names, err := run(os.Stdin, os.Stdout, os.Getenv("VIFSHAPE_VM_EVENTS"))
	if err == nil && *failed != "" {
		err = os.WriteFile(*failed, []byte(names), 0o666)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// run says whether tests ran and none failed, and which did on this machine. The file may be
// missing.
func run(in io.Reader, out io.Writer, file string) (ok bool, failed string, err error) {
	w := bufio.NewWriter(out)
	r := report{machines: map[machine]*result{}, reasons: map[string]string{}, words: map[string]words{}}
	host := relay{w: w, output: map[string][]string{}}
	var again once
	err = read(in, func(e vm.Event) {
		host.show(e)
		again.add(e)
		r.add(e)
	})
	if err != nil {
		return false, "", err
	}
	if file != "" {
		f, err := os.Open(file)
		if err == nil {
			err = errors.Join(read(f, r.add), f.Close())
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, "", err
		}
	}
	r.print(w)
	return r.tests > 0 && !host.failed, again.String(), w.Flush()
}

// once is what failed on this machine and may be run once more.
type once struct {
	tests  []vm.Event // failed ones
	others bool       // something failed that is no test
}

func (o *once) add(e vm.Event) {
	switch {
	case e.Action == "build-fail":
		o.others = true
	case e.Action != vm.Fail:
	case e.Test != "":
		o.tests = append(o.tests, e)
	case !slices.ContainsFunc(o.tests, func(t vm.Event) bool { return t.Package == e.Package }):
		o.others = true
	}
}

func (o *once) String() string {
	if o.others {
		return ""
	}
	lines := map[string]bool{}
	for _, t := range o.tests {
		if !strings.Contains(t.Test, "/") && slices.ContainsFunc(o.tests, func(sub vm.Event) bool { return sub.Package == t.Package && strings.HasPrefix(sub.Test, t.Test+"/") }) {
			continue // its subtests are run again
		}
		names := strings.SplitN(t.Test, "/", 3)
		for i, n := range names {
			names[i] = "^" + regexp.QuoteMeta(n) + "$"
		}
		lines[t.Package+" "+strings.Join(names[:min(len(names), 2)], "/")+"\n"] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(lines)), "")
}

// read calls fn for each line of r. What is no event, as the words of the
// compiler, is output of nothing.
func read(r io.Reader, fn func(vm.Event)) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e vm.Event
			if json.Unmarshal(line, &e) != nil {
				e = vm.Event{Action: vm.Output, Output: string(line)}
			}
			fn(e)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// relay shows events as "go test" does: of tests only what failed.
type relay struct {
	w      *bufio.Writer
	output map[string][]string // of tests that run
	failed bool
}

func (s *relay) show(e vm.Event) {
	test, _, _ := strings.Cut(e.Test, "/")
	key := e.Package + " " + test
	switch {
	case e.Action == "build-output", e.Action == vm.Output && test == "":
		if e.Output != "PASS\n" {
			s.w.WriteString(e.Output)
			s.w.Flush()
		}
	case e.Action == vm.Output:
		if !strings.HasPrefix(e.Output, "=== ") {
			s.output[key] = append(s.output[key], e.Output)
		}
	case e.Action == vm.Fail || e.Action == "build-fail":
		s.failed = true
	}
	if e.Action == vm.Fail && e.Test == "" { // what it died of is told by those that have not ended
		for _, key := range slices.Sorted(maps.Keys(s.output)) {
			if strings.HasPrefix(key, e.Package+" ") {
				s.w.WriteString(strings.Join(s.output[key], ""))
				delete(s.output, key)
			}
		}
		s.w.Flush()
	}
	if e.Test == test && (e.Action == vm.Pass || e.Action == vm.Fail || e.Action == vm.Skip) {
		if e.Action == vm.Fail {
			s.w.WriteString(strings.Join(s.output[key], ""))
			s.w.Flush()
		}
		delete(s.output, key)
	}
}

// machine is a row of the table; its zero value is this machine.
type machine struct{ kernel, cgroup string }

// result is what happened on a machine.
type result struct {
	passed      map[string]int             // by package
	failed      map[string][]string        // tests, by package
	said        map[string]string          // last words of those, by package
	ways, kinds map[string]int             // tests that passed, by way of binding and by leaf kind
	not         map[string]map[string]bool // tests that did not run, by reason
}

type report struct {
	machines map[machine]*result
	reasons  map[string]string // last words, by machine and test
	words    map[string]words  // what tests printed that run or failed, by machine and test
	tests    int
	long     []vm.Event // tests, and no subtests, that took longTest or more
}

// Of the tests that take this many seconds, as many are named.
const (
	longTest  = 10
	longTests = 25
)

// words are what is repeated of what a failed test printed: its last lines, and above them
// the first that say where in a test they come from, as a guest's failure that stands amid
// a long table.
type words struct{ places, last []string }

const (
	lastWords = 15 // lines
	places    = 15
)

var place = regexp.MustCompile(`_test\.go:\d+: `)

func (w words) add(line string) words {
	w.last = append(w.last, line)
	if len(w.last) > lastWords {
		if place.MatchString(w.last[0]) && len(w.places) < places {
			w.places = append(w.places, w.last[0])
		}
		w.last = w.last[1:]
	}
	return w
}

func (w words) String() string { return strings.Join(w.places, "") + strings.Join(w.last, "") }

// kindsTest sends packets through every leaf kind, each in a subtest of its name.
const kindsTest = "TestKernelKindTraffic"

// ways are those that tests name subtests after.
var ways = []bind.Way{bind.WayBPF, bind.WayNft, bind.WayNetCls, bind.WayNetClsNft, bind.WayClsCgroup}

func (r *report) add(e vm.Event) {
	if e.Test == "" {
		return
	}
	m := machine{e.Kernel, e.Cgroup}
	s := r.machines[m]
	if s == nil {
		s = &result{passed: map[string]int{}, failed: map[string][]string{}, said: map[string]string{}, ways: map[string]int{}, kinds: map[string]int{}, not: map[string]map[string]bool{}}
		r.machines[m] = s
	}
	key := fmt.Sprint(m, e.Package, " ", e.Test)
	pkg := path.Base(e.Package)
	if e.Elapsed >= longTest && !strings.Contains(e.Test, "/") {
		r.long = append(r.long, e)
	}
	switch e.Action {
	case vm.Output:
		if _, reason, ok := strings.Cut(e.Output, ": needs "); ok {
			r.reasons[key] = "needs " + strings.TrimSpace(reason)
		}
		if text := strings.TrimSpace(e.Output); !strings.HasPrefix(text, "=== ") && !strings.HasPrefix(text, "--- ") {
			r.words[key] = r.words[key].add(e.Output)
		}
	case vm.Pass:
		delete(r.words, key)
		r.tests++
		s.passed[pkg]++
		test := strings.Split(e.Test, "/")
		for _, way := range ways {
			if slices.Contains(test[1:], string(way)) {
				s.ways[string(way)]++
			}
		}
		if len(test) == 2 && test[0] == kindsTest {
			s.kinds[test[1]]++
		}
	case vm.Fail:
		r.tests++
		s.failed[pkg] = append(s.failed[pkg], e.Test)
		if words := r.words[key].String(); words != "" {
			s.said[pkg] += "  " + e.Test + ":\n" + words
			delete(r.words, key)
		}
	case vm.Skip:
		delete(r.words, key)
		if reason := r.reasons[key]; reason != "" { // else it is a subtest's
			s.leave(reason, e.Test)
		}
	case vm.LeftOut:
		s.leave(e.Output, strings.Trim(e.Test, "^$"))
	}
}

func (s *result) leave(reason, test string) {
	if s.not[reason] == nil {
		s.not[reason] = map[string]bool{}
	}
	s.not[reason][test] = true
}

// print writes the table in the form that a forge shows as one.
func (r *report) print(w *bufio.Writer) {
	fmt.Fprint(w, "\n| kernel | cgroups | tests passed | ways of binding | leaf kinds | not run, because |\n|---|---|---|---|---|---|\n")
	machines := slices.SortedFunc(maps.Keys(r.machines), func(a, b machine) int {
		return strings.Compare(a.kernel+" "+a.cgroup, b.kernel+" "+b.cgroup)
	})
	var failed []string
	for _, m := range machines {
		s := r.machines[m]
		kernel, cgroup := m.kernel, m.cgroup
		if kernel == "" {
			kernel, cgroup = "this machine's", "its own"
		}
		count := list(s.passed)
		if len(s.failed) > 0 {
			counts := map[string]int{}
			for _, pkg := range slices.Sorted(maps.Keys(s.failed)) {
				counts[pkg] = len(s.failed[pkg])
				failed = append(failed, fmt.Sprintf("failed in %s on %s, cgroups %s: %s\n", pkg, kernel, cgroup, strings.Join(s.failed[pkg], ", "))+s.said[pkg])
			}
			count = strings.TrimPrefix(count+", **failed: "+list(counts)+"**", ", ")
		}
		var not []string
		for _, reason := range slices.Sorted(maps.Keys(s.not)) {
			tests := slices.Sorted(maps.Keys(s.not[reason]))
			text := fmt.Sprintf("%s: %s", reason, tests[0])
			if len(tests) > 1 {
				text += fmt.Sprintf(" and %d more", len(tests)-1)
			}
			not = append(not, text)
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", kernel, cgroup, count, list(s.ways),
			strings.Join(slices.Sorted(maps.Keys(s.kinds)), " "), strings.ReplaceAll(strings.Join(not, "; "), "|", `\|`))
	}
	if len(r.long) > 0 {
		fmt.Fprint(w, "\nthe longest:\n")
	}
	slices.SortStableFunc(r.long, func(a, b vm.Event) int { return cmp.Compare(b.Elapsed, a.Elapsed) })
	for _, e := range r.long[:min(len(r.long), longTests)] {
		fmt.Fprintf(w, "%5.0fs  %s %s  %s\n", e.Elapsed, path.Base(e.Package), e.Test, strings.TrimSpace(e.Kernel+" "+e.Cgroup))
	}
	if len(failed) > 0 {
		fmt.Fprint(w, "\n", strings.Join(failed, ""))
	}
}

// list is "a 3, b 4".
func list(counts map[string]int) string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		words = append(words, fmt.Sprintf("%s %d", name, counts[name]))
	}
	return strings.Join(words, ", ")
}
