package bpf

// clang and llvm-strip 14 (Debian 12) make the committed objects, byte for byte.
//go:generate go tool bpf2go -tags linux -go-package bpf classify classify.bpf.c -- -mcpu=v3 -Wall -Wextra -Werror
//go:generate go tool bpf2go -tags linux -go-package bpf sockets sockets.bpf.c -- -mcpu=v3 -Wall -Wextra -Werror
//go:generate go tool bpf2go -tags linux -go-package bpf narrow narrow.bpf.c -- -mcpu=v3 -Wall -Wextra -Werror
//go:generate go tool bpf2go -tags linux -go-package bpf mark mark.bpf.c -- -mcpu=v3 -Wall -Wextra -Werror
//go:generate go tool bpf2go -tags linux -go-package bpf known known.bpf.c -- -mcpu=v3 -Wall -Wextra -Werror
//go:generate go tool bpf2go -tags linux -go-package bpf prove prove.bpf.c -- -mcpu=v3 -Wall -Wextra -Werror
//go:generate go tool bpf2go -tags linux -go-package bpf flow flow.bpf.c -- -mcpu=v3 -Wall -Wextra -Werror
//go:generate go tool bpf2go -tags linux -go-package bpf match match.bpf.c -- -mcpu=v3 -Wall -Wextra -Werror
