package main

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc/qdisc"
)

// Every kind is explained, with each of its parameters and what it takes.
func TestHelpQdisc(t *testing.T) {
	for _, k := range qdisc.Kinds() {
		t.Run(k.Name, func(t *testing.T) {
			text, err := aboutKind(k)
			if err != nil {
				t.Fatal(err)
			}
			if want := "  qdisc = { kind = \"" + k.Name + `", `; !strings.HasPrefix(text, want) {
				t.Errorf("no example: %s", text)
			}
			example, _, _ := strings.Cut(text, "\n")
			file := "version = 1\n[interface.eth0]\nrate = \"1gbit\"\n[interface.eth0.web]\n" + example
			if _, err := policy.Parse("policy.toml", strings.NewReader(file), qdisc.Kinds()); err != nil {
				t.Errorf("the example is no policy: %v", err)
			}
			for _, p := range k.Params {
				if want := "\n  " + p.Name + "\n      " + p.Help + "\n      " + takes(&p); !strings.Contains(text, want) {
					t.Errorf("no %q in %s", want, text)
				}
			}
		})
	}
}

// Every text is that of a topic, which has no command's name; the pages of the manual that
// it names are there, and so is what it tells to type.
func TestTopics(t *testing.T) {
	root := newRootCommand(&env{stdout: &strings.Builder{}, stderr: &strings.Builder{}}, nil)
	files, err := topicTexts.ReadDir("topics")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if _, ok := topicOf(strings.TrimSuffix(f.Name(), ".txt")); !ok {
			t.Errorf("%s is the text of no topic", f.Name())
		}
	}
	named := regexp.MustCompile("(?:`vifshape|vifshape help)\\s+([a-z]+)(?:\\s+([a-z]+))?")
	for _, about := range topics {
		if c, _, err := root.Find([]string{about.name}); err == nil && c != root {
			t.Errorf("topic %s is a command as well", about.name)
		}
		p, err := about.page()
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Text) < 200 {
			t.Errorf("%s says nothing: %q", about.name, p.Text)
		}
		for _, m := range named.FindAllStringSubmatch(p.Text, -1) {
			word := m[1]
			if word == "help" {
				word = m[2]
			}
			_, ok := topicOf(word)
			if c, _, err := root.Find([]string{word}); !ok && (err != nil || c == root) {
				t.Errorf("%s names %q, which is neither a topic nor a command", about.name, m[0])
			}
		}
	}
}

// What a topic shows of a policy is right.
func TestTopicsPolicies(t *testing.T) {
	parsed := 0
	for _, about := range topics {
		for _, text := range indented(about.text()) {
			if strings.HasPrefix(text, "[interface.") {
				text = "version = 1\n[interface.eth0]\nrate = \"940mbit\"\n" + text
			}
			if !strings.HasPrefix(text, "version = 1\n") {
				continue
			}
			parsed++
			_, err := policy.Parse(about.name, strings.NewReader(text), qdisc.Kinds())
			if errs := (policy.Errors)(nil); errors.As(err, &errs) {
				t.Errorf("%s\n%s", errs.Render(), text)
			} else if err != nil {
				t.Error(err)
			}
		}
	}
	if parsed < 6 {
		t.Errorf("only %d policies are shown", parsed)
	}
}

// indented are the examples of a text: lines that are set in by two, and empty ones
// between them.
func indented(text string) []string {
	var all []string
	example := ""
	for line := range strings.Lines(text + "end\n") {
		set, ok := strings.CutPrefix(line, "  ")
		switch {
		case ok:
			example += set
		case line == "\n" && example != "":
			example += line
		case example != "":
			all = append(all, example)
			example = ""
		}
	}
	return all
}
