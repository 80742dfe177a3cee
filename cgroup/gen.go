package cgroup

// clang and llvm-strip 14 (Debian 12) make the committed objects, byte for byte.
//go:generate go tool bpf2go -tags linux -go-package cgroup classify bpf/classify.bpf.c -- -mcpu=v3 -Wall -Wextra -Werror
//go:generate go tool bpf2go -tags linux -go-package cgroup sockets bpf/sockets.bpf.c -- -mcpu=v3 -Wall -Wextra -Werror
//go:generate go tool bpf2go -tags linux -go-package cgroup narrow bpf/narrow.bpf.c -- -mcpu=v3 -Wall -Wextra -Werror
//go:generate go tool bpf2go -tags linux -go-package cgroup mark bpf/mark.bpf.c -- -mcpu=v3 -Wall -Wextra -Werror
//go:generate go tool bpf2go -tags linux -go-package cgroup known bpf/known.bpf.c -- -mcpu=v3 -Wall -Wextra -Werror
//go:generate go tool bpf2go -tags linux -go-package cgroup prove bpf/prove.bpf.c -- -mcpu=v3 -Wall -Wextra -Werror
