// Package nft binds by rules of nf_tables: cgroups of v2 and users by maps that the rules
// look up (bind.WayNft), or by the tags of net_cls (bind.WayNetClsNft). It takes Linux
// 5.16 with CONFIG_NETFILTER_EGRESS and CONFIG_NFT_SOCKET.
//
// What is in force is read back from the kernel; nothing is kept elsewhere.
package nft
