/* SPDX-License-Identifier: MIT */
/*
 * The part of the kernel's BPF interface that the programs use, declared here
 * so that a compiler alone, without kernel or libbpf headers, makes the same
 * object everywhere. Layouts and numbers: include/uapi/linux/bpf.h, v5.2; what goes
 * with kernel.h, v5.11.
 */
typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;

#define SEC(name) __attribute__((section(name), used))
#define __always_inline inline __attribute__((always_inline))
#define NULL ((void *)0)

/* A map's description is read from the types of these members, not their values. */
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name

#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_MAP_TYPE_PERCPU_ARRAY 6
#define BPF_MAP_TYPE_LRU_HASH 9
#define BPF_MAP_TYPE_SK_STORAGE 24
#define BPF_F_NO_PREALLOC (1u << 0)
#define BPF_F_CLONE (1u << 9)
#define BPF_SK_STORAGE_GET_F_CREATE 1ull
#define BPF_HDR_START_MAC 0
#define BPF_HDR_START_NET 1
#define BPF_F_CURRENT_NETNS (-1)
#define BPF_NOEXIST 1
#define BPF_ANY 0
#define TC_ACT_UNSPEC (-1)

struct file;
struct seq_file;
struct socket;
struct task_struct;
struct tcp_sock;

struct bpf_sock {
	__u32 bound_dev_if, family, type, protocol, mark, priority;
	__u32 src_ip4, src_ip6[4], src_port;
	__u16 dst_port, : 16;
	__u32 dst_ip4, dst_ip6[4], state;
};

struct bpf_sock_tuple {
	union {
		struct {
			__u32 saddr, daddr;
			__u16 sport, dport;
		} ipv4;
		struct {
			__u32 saddr[4], daddr[4];
			__u16 sport, dport;
		} ipv6;
	};
};

struct bpf_fib_lookup {
	__u8 family, l4_protocol;
	__u16 sport, dport, tot_len;
	__u32 ifindex, flowinfo;
	__u8 src[16], dst[16];
	__u16 h_vlan_proto, h_vlan_tci;
	__u8 smac[6], dmac[6];
};
#define BPF_FIB_LKUP_RET_SUCCESS 0
#define BPF_FIB_LKUP_RET_NO_NEIGH 7

_Static_assert(sizeof(struct bpf_fib_lookup) == 64, "layout of bpf_fib_lookup");

/* Of the context only pkt_type, protocol, vlan, mark, priority, ingress_ifindex, ifindex, tc_index and sk are used; the rest keeps their places. */
struct __sk_buff {
	__u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex, ifindex, tc_index, cb[5], hash, tc_classid;
	__u32 data, data_end, napi_id;
	__u32 family, remote_ip4, local_ip4, remote_ip6[4], local_ip6[4], remote_port, local_port;
	__u32 data_meta;
	__u64 flow_keys;
	__u64 tstamp;
	__u32 wire_len, gso_segs;
	union {
		struct bpf_sock *sk;
		__u64 : 64;
	} __attribute__((aligned(8)));
};

_Static_assert(__builtin_offsetof(struct __sk_buff, priority) == 32, "layout of __sk_buff");
_Static_assert(__builtin_offsetof(struct __sk_buff, sk) == 168, "layout of __sk_buff");

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;
static long (*const bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static __u64 (*const bpf_ktime_get_ns)(void) = (void *)5;
static long (*const bpf_redirect)(__u32 index, __u64 flags) = (void *)23;
static __u32 (*const bpf_get_cgroup_classid)(struct __sk_buff *skb) = (void *)17;
static __u64 (*const bpf_get_socket_cookie)(struct __sk_buff *skb) = (void *)46;
static __u32 (*const bpf_get_socket_uid)(struct __sk_buff *skb) = (void *)47;
static long (*const bpf_skb_load_bytes_relative)(struct __sk_buff *skb, __u32 at, void *to, __u32 len, __u32 from) = (void *)68;
static long (*const bpf_fib_lookup)(struct __sk_buff *skb, struct bpf_fib_lookup *to, __u32 size, __u32 flags) = (void *)69;
static __u64 (*const bpf_skb_ancestor_cgroup_id)(struct __sk_buff *skb, int level) = (void *)83;
static struct bpf_sock *(*const bpf_sk_lookup_udp)(struct __sk_buff *skb, struct bpf_sock_tuple *tuple, __u32 size, __u64 netns, __u64 flags) = (void *)85;
static long (*const bpf_sk_release)(void *sock) = (void *)86;
static struct bpf_sock *(*const bpf_sk_fullsock)(struct bpf_sock *sk) = (void *)95;
static struct bpf_sock *(*const bpf_get_listener_sock)(struct bpf_sock *sk) = (void *)98;
static struct bpf_sock *(*const bpf_skc_lookup_tcp)(struct __sk_buff *skb, struct bpf_sock_tuple *tuple, __u32 size, __u64 netns, __u64 flags) = (void *)99;
static void *(*const bpf_sk_storage_get)(void *map, void *sk, void *value, __u64 flags) = (void *)107;
static __u64 (*const bpf_jiffies64)(void) = (void *)118;
static long (*const bpf_seq_write)(struct seq_file *seq, const void *data, __u32 len) = (void *)127;
static struct tcp_sock *(*const bpf_skc_to_tcp_sock)(void *sk) = (void *)137;
static struct task_struct *(*const bpf_get_current_task_btf)(void) = (void *)158;
static struct socket *(*const bpf_sock_from_file)(struct file *file) = (void *)162;
