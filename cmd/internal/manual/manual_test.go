package manual_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/cmd/internal/manual"
)

// TestPage holds what becomes of a text: sections, examples, lists, and what roff
// would take for its own.
func TestPage(t *testing.T) {
	p := manual.Page{
		Name: "vifshape-run", Section: 8, Short: "Start a program", Usage: "vifshape run PATH -- COMMAND",
		Text: `Run becomes the program; 'it' keeps \n and ^ and ~.
.So it is, as ` + "`vifshape agent`" + ` says.

  vifshape run eth0/web -- ls
  'vifshape' run --user alice

LEVELS
  lock  It cannot leave:
        neither can root.
  two words  of one meaning

A list follows at once:
  a     one
  lone

# sfq
many flows

  limit
      packets
      a number; default 1

    deeper than an example

    A TABLE
    a b

EXIT STATUS
  0   done
  64  wrong`,
		Options: []manual.Option{{Name: "-v, --verbose", Text: "say more"}, {Name: "--user", Value: "USER", Text: "be USER"}},
		SeeAlso: []string{"vifshape(8)", "vifshape-qdisc(7)"},
	}
	want := `.TH VIFSHAPE\-RUN 8 2026-11-01 vifshape vifshape
.SH NAME
vifshape\-run \- Start a program
.SH SYNOPSIS
\fBvifshape run PATH \-\- COMMAND\fR
.SH DESCRIPTION
.PP
Run becomes the program; \(aqit\(aq keeps \en and \(ha and \(ti.
\&.So it is, as \(gavifshape agent\(ga says.
.PP
.RS 4
.nf
vifshape run eth0/web \-\- ls
\(aqvifshape\(aq run \-\-user alice
.fi
.RE
.SH LEVELS
.TP
\fBlock\fR
It cannot leave:
neither can root.
.TP
\fBtwo words\fR
of one meaning
.PP
A list follows at once:
.PP
.RS 4
.nf
a     one
lone
.fi
.RE
.SH sfq
.PP
many flows
.TP
\fBlimit\fR
packets
.br
a number; default 1
.PP
.RS 4
.nf
  deeper than an example
.fi
.RE
.PP
.RS 4
.nf
  A TABLE
  a b
.fi
.RE
.SH OPTIONS
.TP
\fB\-v, \-\-verbose\fR
say more
.TP
\fB\-\-user\fR \fIUSER\fR
be USER
.SH EXIT STATUS
.TP
\fB0\fR
done
.TP
\fB64\fR
wrong
.SH SEE ALSO
vifshape(8), vifshape\-qdisc(7)
`
	var got strings.Builder
	if n, err := p.WriteTo(&got); err != nil || n != int64(got.Len()) {
		t.Errorf("%d bytes written, %v", n, err)
	}
	if d := cmp.Diff(want, got.String()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
