package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vifshape/vifshape/cmd/internal/manual"
)

func newManCommand(e *env) *cobra.Command {
	dir := ""
	c := &cobra.Command{
		Use:   "man [COMMAND|TOPIC]",
		Short: "Print the manual page of vifshape, of one command or of a topic",
		Long: `Print the manual page of vifshape, of one of its commands or of a topic of "vifshape
help", in the form that man reads:

  vifshape man apply | man -l -
  vifshape man policy | man -l -

Packages bring the pages along, all of them made by

  vifshape man --dir /usr/local/share/man` + plainExitHelp,
		Args: args(0, 1, "one command or topic at most"),
		RunE: func(c *cobra.Command, a []string) error {
			if dir != "" {
				return writePages(c.Root(), dir)
			}
			about := c.Root()
			if len(a) == 1 {
				if t, ok := topicOf(a[0]); ok {
					return e.page(t.page())
				}
				sub, _, err := about.Find(a)
				if err != nil || sub == about {
					return noPage(about, a)
				}
				about = sub
			}
			return e.page(commandPage(about), nil)
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "write all pages into `DIR`, below man5, man7 and man8")
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
	var pages []*manual.Page
	for _, t := range topics {
		p, err := t.page()
		if err != nil {
			return err
		}
		pages = append(pages, p)
	}
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
	for _, t := range topics {
		if !c.HasParent() || t.name == "policy" || t.name == "json" && c.Flags().Lookup("json") != nil {
			p.SeeAlso = append(p.SeeAlso, t.reference())
		}
	}
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
