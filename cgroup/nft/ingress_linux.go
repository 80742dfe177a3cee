package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/iface"
)

// IngressChains lists the chains of the caller's network namespace that are at the ingress
// hook of an interface: "netdev filter in". What a tc program at ingress redirects does not
// come to them: not before, because tc is asked first, nor after it, because what comes back
// from an IFB skips both (__netif_receive_skb_core, net/core/dev.c, v5.10 to v6.18). Needs
// CAP_NET_ADMIN.
func IngressChains(dev string) (found []string, err error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err == nil {
		defer c.Close()
		var answers []netlink.Message
		answers, err = iface.Whole(func() ([]netlink.Message, error) {
			return c.Execute(netlink.Message{
				Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETCHAIN), Flags: netlink.Request | netlink.Dump},
				Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0},
			})
		})
		for _, a := range answers {
			var name string
			if name, err = ingressChain(a.Data, dev); err != nil {
				break
			}
			if name != "" {
				found = append(found, name)
			}
		}
	}
	switch {
	case noNetfilter(err), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP): // no nf_tables in this kernel
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("look for firewall rules at ingress: %w", caps.Explain(err, unix.CAP_NET_ADMIN))
	}
	return found, nil
}

// ingressChain names the chain of a message, if it is at the ingress hook of an interface.
func ingressChain(message []byte, dev string) (string, error) {
	const (
		hookDevs    = 4 // NFTA_HOOK_DEVS
		inetIngress = 5 // NF_INET_INGRESS
	)
	if len(message) < 4 {
		return "", nil
	}
	ad, err := netlink.NewAttributeDecoder(message[4:])
	if err != nil {
		return "", err
	}
	ad.ByteOrder = binary.BigEndian
	family := nftables.TableFamily(message[0])
	var table, chain string
	var at, on bool
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_CHAIN_TABLE:
			table = ad.String()
		case unix.NFTA_CHAIN_NAME:
			chain = ad.String()
		case unix.NFTA_CHAIN_HOOK:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					switch ad.Type() {
					case unix.NFTA_HOOK_HOOKNUM:
						n := ad.Uint32()
						at = family == nftables.TableFamilyNetdev && n == unix.NF_NETDEV_INGRESS || family == nftables.TableFamilyINet && n == inetIngress
					case unix.NFTA_HOOK_DEV:
						on = on || ad.String() == dev
					case hookDevs:
						ad.Nested(func(ad *netlink.AttributeDecoder) error {
							for ad.Next() {
								on = on || ad.String() == dev
							}
							return nil
						})
					}
				}
				return nil
			})
		}
	}
	if err := ad.Err(); err != nil || !at || !on {
		return "", err
	}
	return fmt.Sprintf("%s %s %s", families[family], table, chain), nil
}
