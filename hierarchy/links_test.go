package hierarchy_test

import (
	"go/ast"
	"go/doc"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// bracketed is what was to be a link in a doc comment, and is text because there is
// nothing of that name: a name of the package, or of one that it imports.
var bracketed = regexp.MustCompile(`\[\*?(?:[a-z]\w*\.)?[A-Z]\w*(?:\.[A-Z]\w*)?\]`)

// documented is a package with what its comments may link to.
type documented struct {
	*doc.Package
	names map[string]bool // "Type", "Type.Method", "Type.Field"
}

func document(t *testing.T, p pkg) *documented {
	t.Helper()
	fset, files := token.NewFileSet(), []*ast.File(nil)
	for _, name := range p.GoFiles {
		f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	names := map[string]bool{}
	for _, f := range files { // before doc takes out what is not exported
		for _, d := range f.Decls {
			gen, ok := d.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, s := range gen.Specs {
				ts, ok := s.(*ast.TypeSpec)
				if !ok {
					continue
				}
				var fields *ast.FieldList
				switch x := ts.Type.(type) {
				case *ast.StructType:
					fields = x.Fields
				case *ast.InterfaceType:
					fields = x.Methods
				default:
					continue
				}
				for _, f := range fields.List {
					for _, n := range f.Names {
						names[ts.Name.Name+"."+n.Name] = true
					}
				}
			}
		}
	}
	d, err := doc.NewFromFiles(fset, files, p.ImportPath, doc.AllDecls)
	if err != nil {
		t.Fatal(err)
	}
	add := func(values []*doc.Value) {
		for _, v := range values {
			for _, n := range v.Names {
				names[n] = true
			}
		}
	}
	add(d.Consts)
	add(d.Vars)
	for _, f := range d.Funcs {
		names[f.Name] = true
	}
	for _, ty := range d.Types {
		names[ty.Name] = true
		add(ty.Consts)
		add(ty.Vars)
		for _, f := range ty.Funcs {
			names[f.Name] = true
		}
		for _, m := range ty.Methods {
			names[ty.Name+"."+m.Name] = true
		}
	}
	return &documented{d, names}
}

// comments are the doc comments of a package, by what they are about.
func (d *documented) comments() map[string]string {
	all := map[string]string{"package " + d.Name: d.Doc}
	add := func(values []*doc.Value, funcs ...*doc.Func) {
		for _, v := range values {
			all[strings.Join(v.Names, ", ")] = v.Doc
		}
		for _, f := range funcs {
			all[strings.TrimPrefix(f.Recv+"."+f.Name, ".")] = f.Doc
		}
	}
	add(d.Consts, d.Funcs...)
	add(d.Vars)
	for _, t := range d.Types {
		all[t.Name] = t.Doc
		add(t.Consts, t.Funcs...)
		add(t.Vars, t.Methods...)
	}
	return all
}

// texts are the texts of a comment, without what is printed as it is.
func texts(blocks []comment.Block) (all []comment.Text) {
	for _, b := range blocks {
		switch b := b.(type) {
		case *comment.Paragraph:
			all = append(all, b.Text...)
		case *comment.Heading:
			all = append(all, b.Text...)
		case *comment.List:
			for _, i := range b.Items {
				all = append(all, texts(i.Content)...)
			}
		}
	}
	return all
}

// Every link in a doc comment leads somewhere.
func TestDocLinks(t *testing.T) {
	known := map[string]*documented{}
	for _, p := range packages(t, "./...") {
		known[p.ImportPath] = document(t, p)
	}
	links := map[string][]*comment.DocLink{} // by where they are
	wanted := []string{}                     // packages of others
	for path, d := range known {
		for about, text := range d.comments() {
			where := strings.TrimPrefix(path, module) + ", " + about
			for _, x := range texts(d.Parser().Parse(text).Content) {
				switch x := x.(type) {
				case comment.Plain:
					for _, b := range bracketed.FindAllString(string(x), -1) {
						t.Errorf("%s: the link %s leads nowhere", where, b)
					}
				case *comment.DocLink:
					links[where] = append(links[where], x)
					if x.ImportPath != "" && known[x.ImportPath] == nil && !slices.Contains(wanted, x.ImportPath) {
						wanted = append(wanted, x.ImportPath)
					}
				}
			}
		}
	}
	if len(links) == 0 {
		t.Fatal("no comment has a link")
	}
	if len(wanted) > 0 {
		for _, p := range packages(t, wanted...) {
			known[p.ImportPath] = document(t, p)
		}
	}
	for where, all := range links {
		for _, l := range all {
			name := strings.TrimPrefix(l.Recv+"."+l.Name, ".")
			if d := known[l.ImportPath]; l.ImportPath != "" && (d == nil || name != "" && !d.names[name]) {
				t.Errorf("%s: the link to %s of %s leads nowhere", where, name, l.ImportPath)
			}
		}
	}
}
