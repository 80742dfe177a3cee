package bind

// Way is how packets get their class.
type Way string

// The ways, best first.
const (
	WayNone      Way = ""
	WayBPF       Way = "bpf"         // cgroup v2, tc BPF program at egress
	WayNft       Way = "nft"         // cgroup v2, rules of nf_tables
	WayNetCls    Way = "net_cls"     // cgroup v1 classid, tc BPF program at egress
	WayNetClsNft Way = "net_cls+nft" // cgroup v1 classid, rules of nf_tables
	WayClsCgroup Way = "cls_cgroup"  // cgroup v1 classid, the kernel's cgroup classifier on the root qdisc
)

// Tagged says whether the way goes by the tags of net_cls.
func (w Way) Tagged() bool { return w == WayNetCls || w == WayNetClsNft || w == WayClsCgroup }
