//go:build ignore

// For user-mode Linux on a processor with AMX: it sets the floating point
// registers of its processes with 2,696 bytes (put_fp_registers,
// arch/x86/um/os-Linux/registers.c, v6.1), and a kernel that knows larger ones
// takes all of them or none (xstateregs_set, arch/x86/kernel/fpu/regset.c,
// v6.18). Loaded before the C library, this sets the rest to what it is.

#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define NT_X86_XSTATE ((void *)0x202)

long ptrace(enum __ptrace_request request, ...)
{
	static char all[1 << 16];
	va_list args;
	va_start(args, request);
	pid_t pid = va_arg(args, pid_t);
	void *addr = va_arg(args, void *), *data = va_arg(args, void *);
	va_end(args);

	struct iovec *some = data, whole = {all, sizeof(all)};
	if (request == PTRACE_SETREGSET && addr == NT_X86_XSTATE &&
	    syscall(SYS_ptrace, PTRACE_GETREGSET, pid, addr, &whole) == 0 && whole.iov_len > some->iov_len) {
		memcpy(all, some->iov_base, some->iov_len);
		return syscall(SYS_ptrace, request, pid, addr, &whole);
	}
	// The C library returns what the system call stores.
	if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
		long word, r = syscall(SYS_ptrace, request, pid, addr, &word);
		return r < 0 ? r : word;
	}
	return syscall(SYS_ptrace, request, pid, addr, data);
}
