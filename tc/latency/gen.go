package latency

// clang and llvm-strip 14 (Debian 12) make the committed objects, byte for byte.
//go:generate go tool bpf2go -tags linux -go-package latency waits waits.bpf.c -- -mcpu=v3 -Wall -Wextra -Werror
