package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/confine"
	"github.com/vifshape/vifshape/cmd/client"
	"github.com/vifshape/vifshape/cmd/internal/adopt"
	"github.com/vifshape/vifshape/cmd/internal/agent"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/setup"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Exit codes. Each command's help lists those it uses.
const (
	exitOK          = 0
	exitError       = 1   // an error; nothing was changed, or everything was put back
	exitChanges     = 2   // plan and apply --detailed-exitcode: there are changes, and nothing else
	exitPartly      = 3   // something was changed and could not be put back
	exitLocked      = 4   // another vifshape is at work; agent: there is one already
	exitPrivilege   = 5   // root, or a capability of root, is missing
	exitAbsent      = 6   // done, but for interfaces of the policy that are not there
	exitUsage       = 64  // wrong flags or arguments: EX_USAGE of sysexits.h
	exitCannotRun   = 126 // run: the program is there and cannot be started
	exitNotFound    = 127 // run: there is no such program
	exitInterrupted = 130 // Ctrl-C or SIGTERM; what was begun was put back
)

const exitHelp = `
EXIT STATUS
  0    done
  1    an error; nothing was changed, or everything was put back
  3    something was changed and could not be put back; the message says what
  4    another vifshape is changing this network namespace
  5    root is needed, or root lacks a capability that the message names
  64   wrong flags or arguments
  130  interrupted; what was begun was put back
`

// plainExitHelp is for what changes nothing.
const plainExitHelp = `

EXIT STATUS
  0   done
  1   an error
  64  wrong flags or arguments`

// usageError is a mistake in flags or arguments.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// rightsError says what only root may do.
type rightsError string

func (e rightsError) Error() string { return string(e) }

// codeError ends the program with a code and no message.
type codeError int

func (e codeError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// exitCode is the code that an error ends the program with.
func exitCode(err error) int {
	var code codeError
	var locked *record.LockedError
	var running *record.RunningError
	var usage usageError
	var exec *confine.ExecError
	var answer *client.Error
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &answer):
		return answer.Code
	case errors.As(err, &code):
		return int(code)
	case partly(err):
		return exitPartly
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.As(err, &usage), errors.As(err, new(agent.BadRequestError)):
		return exitUsage
	case errors.As(err, &locked), errors.As(err, &running):
		return exitLocked
	case errors.As(err, &exec) && exec.NotFound():
		return exitNotFound
	case errors.As(err, &exec), errors.As(err, new(*confine.UnfitError)):
		return exitCannotRun
	case privilege(err):
		return exitPrivilege
	}
	return exitError
}

func partly(err error) bool {
	var apply *hierarchy.ApplyError
	var several shaper.PartlyError
	var unrecorded *shaper.UnrecordedError
	return errors.As(err, &several) || errors.As(err, &apply) && apply.Undo != nil || errors.As(err, &unrecorded)
}

func privilege(err error) bool {
	return errors.As(err, new(rightsError)) || errors.As(err, new(*client.NoAgentError)) || errors.As(err, new(shaper.DeniedError)) || errors.As(err, new(*shaper.InsideError)) || shaper.NotPrivileged(err)
}

// report prints an error as a user wants to read it.
func (e *env) report(err error) {
	var code codeError
	var bad policy.Errors
	switch {
	case errors.As(err, &code):
	case errors.As(err, &bad):
		fmt.Fprint(e.stderr, bad.Render())
	default:
		text := err.Error()
		if errors.Is(err, context.Canceled) {
			text = strings.Replace(text, context.Canceled.Error(), "interrupted", 1)
		}
		fmt.Fprintf(e.stderr, "vifshape: error: %s\n", text)
		for _, h := range hints(err, e.args) {
			e.hintf("%s", h)
		}
	}
}

// hints are the ways on from an error, for who called the program with arguments.
func hints(err error, args []string) []string {
	var locked *record.LockedError
	var usage usageError
	var exec *confine.ExecError
	var former shaper.FormerError
	var lock *confine.LockError
	var handed *confine.HandedError
	var answer *client.Error
	var denied shaper.DeniedError
	var problem amend.ProblemError
	var room *record.NoRoomError
	var way interface{ Remedy() string }
	switch {
	case errors.As(err, &way):
		return []string{way.Remedy()}
	case errors.As(err, &answer):
		return answer.Hints
	case errors.As(err, &problem) && problem.Hint == "":
	case errors.As(err, &problem):
		return []string{problem.Hint}
	case errors.As(err, new(*shaper.InsideError)): // which says it
	case errors.As(err, new(rightsError)):
		return []string{asRoot(args)}
	case errors.As(err, new(*client.NoAgentError)):
		return []string{asRoot(forUser(args)) + "; or have root start `vifshape agent`, which does it for users to whom the branch is delegated"}
	case errors.As(err, &denied):
		return []string{"delegate = [...] below a branch of the policy says whose it is; `vifshape show` lists them"}
	case errors.As(err, &lock):
		return []string{"`vifshape run --level best` starts it with what this machine can hold, `--level tag` with the cgroup alone"}
	case errors.As(err, &room):
		return []string{fmt.Sprintf("make room in the run directory (`df %s`), and do it again", room.Dir)}
	case errors.As(err, new(*confine.UnfitError)):
		return []string{"`vifshape run --level tag` starts it, with the cgroup alone"}
	case errors.As(err, &handed):
		return []string{"hand over what is in it by a pipe, as in `cat FILE | vifshape run ...` and `vifshape run ... | tee FILE`"}
	case errors.As(err, &exec): // the program's own privileges are meant
	case errors.As(err, &former):
		return []string{"until what set it up does so again, the kernel's own queue is in its place"}
	case partly(err):
		return []string{"`vifshape plan` shows what differs from the policy, `vifshape clear` takes the whole tree away"}
	case errors.As(err, &locked):
		return []string{"try again when it is done; a lock goes with its process, so none can be left behind"}
	case errors.As(err, &usage), errors.As(err, new(agent.BadRequestError)):
		if name := alone(args); name != "" {
			return []string{fmt.Sprintf("`vifshape help %s` says what it takes", name)}
		}
		return []string{"`vifshape help` lists the commands and topics"}
	case errors.Is(err, caps.ErrConfined):
		return []string{"run it as root of the machine, outside of containers and user namespaces; with nsenter --net it works on the interfaces of one from there"}
	case privilege(err) && os.Geteuid() != 0:
		return []string{asRoot(forUser(args)) + "; check, plan, ls and show need no privileges"}
	case privilege(err):
		return []string{"this process is root without all that root may, as in a container: it takes CAP_NET_ADMIN and CAP_SYS_ADMIN, run --user also CAP_SETUID and CAP_SETGID, and cgroups and /run that root can write"}
	case errors.Is(err, setup.ErrNoRoute):
		return []string{"`vifshape ls` lists the interfaces; for one of them a policy is three lines: version = 1, [interface.NAME] and rate = \"100mbit\", what its line carries"}
	case missingPolicy(err) != "":
		return []string{fmt.Sprintf("`vifshape init -o %s` writes a first policy for this machine", words.Quoted(missingPolicy(err)))}
	case errors.Is(err, adopt.ErrOurs):
		return []string{"`vifshape show` names the policy that it is from, `vifshape limits --save FILE` makes one of limits"}
	case errors.Is(err, rtnl.ErrNotSupported):
		return []string{"`vifshape doctor` says what this kernel has"}
	}
	return nil
}

// missingPolicy is the policy that is not there, where it could be; empty: it is something
// else that is wrong.
func missingPolicy(err error) string {
	var file *fs.PathError
	if !errors.As(err, &file) || !errors.Is(file, fs.ErrNotExist) || filepath.Ext(file.Path) != ".toml" {
		return ""
	}
	if _, err := os.Stat(filepath.Dir(file.Path)); err != nil {
		return ""
	}
	return file.Path
}
