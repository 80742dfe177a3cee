package main

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/agent"
	"github.com/vifshape/vifshape/cmd/internal/doctor"
	"github.com/vifshape/vifshape/cmd/internal/explain"
	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/cmd/internal/schema"
	"github.com/vifshape/vifshape/cmd/internal/trial"
	"github.com/vifshape/vifshape/hierarchy"
)

// outputs are what commands write with --json.
var outputs = []schema.Output{
	{Command: "check", Value: checkJSON{}}, {Command: "plan", Value: planJSON{}}, {Command: "show", Value: showJSON{}},
	{Command: "ls", Value: lsJSON{}}, {Command: "limits", Value: limitsJSON{}}, {Command: "bindings", Value: bindingsJSON{}}, {Command: "self", Value: selfJSON{}}, {Command: "which", Value: whichJSON{}}, {Command: "explain", Value: explainJSON{}}, {Command: "what-if", Value: whatIfJSON{}}, {Command: "latency", Value: observe.Latencies{}},
	{Command: "doctor", Value: doctor.Report{}}, {Command: "prove", Value: proveJSON{}}, {Command: "rollback", Value: historyJSON{}}, {Command: "enable", Value: enabledJSON{}}, {Command: "watch", Value: agent.Notice{}},
	{Command: "selftest escape", Value: escapeJSON{}}, {Command: "demo", Value: demoJSON{}}, {Command: "version", Value: version{}},
}

// objects are the names of those whose types do not say it.
var objects = schema.Names{
	reflect.TypeFor[hierarchy.Item]():         "root, class, leaf, classifier, binding or matches",
	reflect.TypeFor[hierarchy.Hook]():         "classifier",
	reflect.TypeFor[hierarchy.Bound]():        "binding",
	reflect.TypeFor[hierarchy.Matched]():      "matches",
	reflect.TypeFor[observe.Binding]():        "written binding",
	reflect.TypeFor[observe.Bound]():          "held binding",
	reflect.TypeFor[observe.Stray]():          "stray sockets",
	reflect.TypeFor[observe.Link]():           "link",
	reflect.TypeFor[observe.LinkBranch]():     "listed branch",
	reflect.TypeFor[interfacePlanJSON]():      "interface's plan",
	reflect.TypeFor[interfaceHistoryJSON]():   "interface's history",
	reflect.TypeFor[enabledPolicyJSON]():      "enabled policy",
	reflect.TypeFor[enabledInterfaceJSON]():   "enabled interface",
	reflect.TypeFor[limitJSON]():              "limit",
	reflect.TypeFor[observe.Limits]():         "what holds",
	reflect.TypeFor[answerJSON]():             "explanation",
	reflect.TypeFor[explain.Level]():          "level",
	reflect.TypeFor[explain.Connection]():     "connection",
	reflect.TypeFor[observe.Self]():           "own branch",
	reflect.TypeFor[observe.Which]():          "answer",
	reflect.TypeFor[observe.Rule]():           "held match",
	reflect.TypeFor[observe.ForecastBranch](): "foreseen branch",
	reflect.TypeFor[observe.Latency]():        "timed port",
	reflect.TypeFor[observe.LatencyBranch]():  "timed branch",
	reflect.TypeFor[observe.LatencyDrop]():    "drop",
	reflect.TypeFor[trial.DemoPhase]():        "phase",
	reflect.TypeFor[trial.DemoResult]():       "result",
	reflect.TypeFor[trial.Escapes]():          "attempts",
	reflect.TypeFor[trial.EscapeResult]():     "attempt",
	reflect.TypeFor[hierarchy.LinkLayer]():    "line",
}

// TestJSONHelp holds that `vifshape help json` tells of every field that a command
// writes, and of no other. With UPDATE_SCRIPTS it brings the fields up to date; what
// they mean is to be written then.
func TestJSONHelp(t *testing.T) {
	about, ok := topicOf("json")
	if !ok {
		t.Fatal("no topic json")
	}
	aboutJSON := about.text()
	head, _, _ := strings.Cut(aboutJSON, "\n# ")
	said := map[string]string{}
	object := ""
	for line := range strings.Lines(aboutJSON) {
		if name, ok := strings.CutPrefix(line, "# "); ok {
			object = strings.TrimSpace(name)
		}
		if m := regexp.MustCompile(`^  (\S+) +([^:]+): (.+)\n$`).FindStringSubmatch(line); m != nil {
			said[object+" "+m[1]] = m[3]
		}
	}
	var want strings.Builder
	want.WriteString(strings.TrimRight(head, "\n") + "\n")
	seen := map[string]bool{}
	for _, o := range schema.Describe(outputs, objects, hierarchy.Root{}, hierarchy.Class{}, hierarchy.Leaf{}, hierarchy.Hook{}, hierarchy.Bound{}, hierarchy.Matched{}) {
		if seen[o.Name] {
			t.Errorf("two objects are called %s", o.Name)
		}
		seen[o.Name] = true
		fmt.Fprintf(&want, "\n# %s\n", o.Name)
		width := 0
		for _, f := range o.Fields {
			width = max(width, len(f.Name)+1)
		}
		for _, f := range o.Fields {
			name := f.Name
			if f.Optional {
				name += "?"
			}
			text := said[o.Name+" "+name]
			if text == "" {
				t.Errorf("%s: %s (%s) is not explained", o.Name, name, f.Type)
			}
			fmt.Fprintf(&want, "  %-*s  %s: %s\n", width, name, f.Type, text)
		}
	}
	if os.Getenv("UPDATE_SCRIPTS") != "" {
		if err := os.WriteFile("topics/json.txt", []byte(want.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(want.String(), aboutJSON); d != "" {
		t.Errorf("json.txt (-want +got):\n%s", d)
	}
}

// TestJSONCommands holds that the output of every command with --json is described.
func TestJSONCommands(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		name := strings.TrimPrefix(c.CommandPath(), "vifshape ")
		if c.Flags().Lookup("json") != nil && !c.Hidden && !slices.ContainsFunc(outputs, func(o schema.Output) bool { return o.Command == name }) {
			t.Errorf("%s --json is not described", name)
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRootCommand(&env{stdout: &strings.Builder{}, stderr: &strings.Builder{}}, nil))
}
