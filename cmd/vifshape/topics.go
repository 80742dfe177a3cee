package main

import (
	"embed"
	"fmt"
	"strings"

	"github.com/vifshape/vifshape/cmd/internal/manual"
	"github.com/vifshape/vifshape/hierarchy/emulate"
	"github.com/vifshape/vifshape/tc/qdisc"
)

// topic is something that help tells of besides commands, and a page of the manual.
type topic struct {
	name    string
	section int // of the manual
	short   string
}

// topics are those of topics/, emulateTopic and qdiscTopic, in the order in which they are wanted.
var topics = []topic{
	{"policy", 5, "The policy file: all its keys"},
	{"binding", 7, "Whose traffic a branch carries, and what keeps it there"},
	{"containers", 7, "Containers and pods, which send from namespaces of their own"},
	{"kubernetes", 7, "Pods of Kubernetes, of which the container runtime tells"},
	{"match", 7, "Packets told apart by what they are"},
	{"receive", 7, "What an interface receives"},
	{emulateTopic, 7, "Links by name, for --emulate of run and limit"},
	{qdiscTopic, 7, "The queues of leaves, all kinds and parameters"},
	{"lasting", 7, "What outlives a restart, and others who change things"},
	{"delegation", 7, "Branches for users who are not root"},
	{"levels", 7, "How run keeps programs in, and what was tried against it"},
	{"caveats", 7, "What vifshape does not do"},
	{"kernel", 7, "What it takes of kernel and machine"},
	{"figures", 7, "What was measured"},
	{"json", 7, "What commands print with --json"},
	{"exit", 7, "Exit statuses, and what goes where"},
}

const (
	emulateTopic = "emulate" // made of what hierarchy/emulate knows
	qdiscTopic   = "qdisc"   // of what tc/qdisc knows; it has a text for each kind besides
)

//go:embed topics
var topicTexts embed.FS

// text is what help prints.
func (t topic) text() string {
	switch t.name {
	case emulateTopic:
		return listLinks()
	case qdiscTopic:
		return listKinds()
	}
	b, err := topicTexts.ReadFile("topics/" + t.name + ".txt")
	if err != nil {
		panic(err) // a test reads them all
	}
	return string(b)
}

// page is the page of the manual.
func (t topic) page() (*manual.Page, error) {
	p := &manual.Page{Name: "vifshape-" + t.name, Section: t.section, Short: t.short, Text: t.text(), SeeAlso: []string{"vifshape(8)"}}
	if t.name != qdiscTopic {
		return p, nil
	}
	var s strings.Builder
	s.WriteString(aboutKinds)
	for _, k := range qdisc.Kinds() {
		text, err := aboutKind(k)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&s, "\n# %s\n%s\n\n%s", k.Name, k.Help, text)
	}
	p.Text = s.String()
	return p, nil
}

// listLinks is what links by name are: a table, and a list of where each is from.
func listLinks() string {
	var b strings.Builder
	if err := emulate.Describe(&b); err != nil {
		panic(err) // nothing is written to but memory
	}
	table, rest, _ := strings.Cut(b.String(), "\n\n")
	note, sources, _ := strings.Cut(rest, "\n\nSources\n\n")
	set := func(lines, by string) string {
		var s strings.Builder
		for line := range strings.Lines(lines) {
			s.WriteString(by + strings.TrimRight(line, " \n") + "\n")
		}
		return s.String()
	}
	return aboutLinks + set(table, "    ") + "\n" + note + "\n\nSOURCES\n" + set(sources, "  ")
}

const aboutLinks = `A program gets a link of a kind by name, both ways, and nobody else notices:

  vifshape run --emulate 3g -- ./client
  vifshape limit container:shop --emulate satellite

--up, --down, --rate (both ways), --delay, --jitter and --loss change what is in the name, or
describe a link without one. In a policy a link is the queue netem of a leaf and its ceil:
"vifshape help qdisc netem" has what else can go wrong with a packet. It takes the kernel's
module sch_netem.

ping shows it. Where the setting net.ipv4.ping_group_range is for nobody, as in a new network
namespace, ping takes a capability that run would take away:

  vifshape run --emulate 3g --keep-caps NET_RAW -- ping -c 3 192.0.2.1

`

// reference is how other pages name it.
func (t topic) reference() string { return fmt.Sprintf("vifshape-%s(%d)", t.name, t.section) }

// topicOf is the topic of a name.
func topicOf(name string) (topic, bool) {
	for _, t := range topics {
		if t.name == name {
			return t, true
		}
	}
	return topic{}, false
}

// listTopics lists them for a help text.
func listTopics() string {
	var s strings.Builder
	for _, t := range topics {
		fmt.Fprintf(&s, "\n  %-11s %s", t.name, t.short)
	}
	return s.String()
}
