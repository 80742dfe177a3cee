package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vifshape/vifshape/cmd/internal/manual"
	"github.com/vifshape/vifshape/tc/qdisc"
)

func newManCommand(e *env) *cobra.Command {
	dir := ""
	c := &cobra.Command{
		Use:   "man [COMMAND]",
		Short: "Print the manual page of vifshape or of one command",
		Long: `Print the manual page of vifshape, or of one of its commands, in the form that
man reads:

  vifshape man apply | man -l -
  vifshape man qdisc | man -l -        the queueing disciplines of leaves
  vifshape man json | man -l -         what commands print with --json

Packages bring the pages along, all of them made by

  vifshape man --dir /usr/local/share/man` + plainExitHelp,
		Args: args(0, 1, "one command at most"),
		RunE: func(c *cobra.Command, a []string) error {
			if dir != "" {
				return writePages(c.Root(), dir)
			}
			about := c.Root()
			if len(a) == 1 && a[0] == qdiscTopic {
				return e.page(qdiscPage())
			}
			if len(a) == 1 && a[0] == jsonTopic {
				return e.page(jsonPage(), nil)
			}
			if len(a) == 1 {
				sub, _, err := about.Find(a)
				if err != nil || sub == about {
					return usagef("no command %q: `vifshape help` lists them", a[0])
				}
				about = sub
			}
			return e.page(commandPage(about), nil)
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "write all pages into `DIR`, below man7 and man8")
	return c
}

func (e *env) page(p *manual.Page, err error) error {
	if err == nil {
		_, err = p.WriteTo(e.stdout)
	}
	return err
}

// writePages writes every page where man looks for it.
func writePages(root *cobra.Command, dir string) error {
	qdisc, err := qdiscPage()
	if err != nil {
		return err
	}
	pages := []*manual.Page{qdisc, jsonPage()}
	for all := []*cobra.Command{root}; len(all) > 0; all = all[1:] {
		pages = append(pages, commandPage(all[0]))
		for _, c := range all[0].Commands() {
			if !c.Hidden {
				all = append(all, c)
			}
		}
	}
	return manual.Write(dir, pages)
}

// pageName is a command's name as a page.
func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// commandPage is the page of a command.
func commandPage(c *cobra.Command) *manual.Page {
	p := &manual.Page{Name: pageName(c), Section: 8, Short: c.Short, Usage: c.UseLine(), Text: c.Long}
	c.InitDefaultHelpFlag()
	c.LocalFlags().VisitAll(func(f *pflag.Flag) { p.Options = append(p.Options, option(f)) })
	if c.HasParent() {
		p.SeeAlso = append(p.SeeAlso, pageName(c.Parent())+"(8)")
	}
	var list strings.Builder
	for _, g := range c.Groups() {
		fmt.Fprintf(&list, "\n\n%s\n", g.Title)
		for _, sub := range c.Commands() {
			if sub.GroupID == g.ID {
				fmt.Fprintf(&list, "  %s  %s\n", pageName(sub)+"(8)", sub.Short)
			}
		}
	}
	if list.Len() > 0 {
		p.Text += "\n\nCOMMANDS" + list.String()
	}
	for _, sub := range c.Commands() {
		if !sub.Hidden && sub.GroupID == "" {
			p.SeeAlso = append(p.SeeAlso, pageName(sub)+"(8)")
		}
	}
	if c.Flags().Lookup("json") != nil || !c.HasParent() {
		p.SeeAlso = append(p.SeeAlso, "vifshape-"+jsonTopic+"(7)")
	}
	p.SeeAlso = append(p.SeeAlso, "vifshape-"+qdiscTopic+"(7)")
	return p
}

// option is a flag on a page.
func option(f *pflag.Flag) manual.Option {
	value, usage := pflag.UnquoteUsage(f)
	o := manual.Option{Name: "--" + f.Name, Value: value, Text: usage}
	if f.Shorthand != "" {
		o.Name = "-" + f.Shorthand + ", " + o.Name
	}
	if v := f.DefValue; v != "" && v != "false" && v != "[]" && v != "0" && v != "0s" {
		o.Text += fmt.Sprintf(" (default %s)", v)
	}
	return o
}

// jsonPage is the page about what programs read.
func jsonPage() *manual.Page {
	return &manual.Page{Name: "vifshape-" + jsonTopic, Section: 7, Short: "what commands print with --json", Text: aboutJSON, SeeAlso: []string{"vifshape(8)"}}
}

// qdiscPage is the page about queueing disciplines.
func qdiscPage() (*manual.Page, error) {
	var s strings.Builder
	s.WriteString(aboutKinds)
	for _, k := range qdisc.Kinds() {
		text, err := aboutKind(k)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&s, "\n# %s\n%s\n\n%s", k.Name, k.Help, text)
	}
	return &manual.Page{Name: "vifshape-" + qdiscTopic, Section: 7, Short: "queueing disciplines of leaves", Text: s.String(), SeeAlso: []string{"vifshape(8)"}}, nil
}
