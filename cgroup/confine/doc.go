// Package confine starts a program in a branch that it cannot leave: [Command.Exec] puts
// the calling process there, puts up what keeps a program in, as far as its [Level]
// asks, and becomes the program. How the process gets into the branch's cgroup is the
// caller's.
//
// What crosses the border from outside is listed in crossing_linux.go. Levels lock and
// best take Landlock (Linux 5.19), mount_setattr (5.12) and seccomp filters. Linux only.
package confine
