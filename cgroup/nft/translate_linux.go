package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Translations lists what in a network namespace, by its descriptor, may translate the addresses
// of our side on an interface: chains with such rules, "ip nat postrouting", those of
// iptables-nft among them. The rules of the old iptables cannot be listed: of the caller's
// namespace, which is 0, it is the table, once it is there. Needs CAP_NET_ADMIN.
func Translations(netNS int, dev string, index uint32) (found []string, err error) {
	found, err = chainsWith(netNS, func(r *nftables.Rule) bool { return translates(r, dev, index) })
	if err != nil || netNS != 0 {
		return found, err
	}
	for _, tables := range []string{"ip_tables", "ip6_tables"} {
		b, err := os.ReadFile("/proc/thread-self/net/" + tables + "_names")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("look for firewall rules: %w", err)
		}
		if slices.Contains(strings.Fields(string(b)), "nat") {
			found = append(found, tables+" nat")
		}
	}
	return found, nil
}

// translates says whether a rule translates the addresses of our side on an interface: those of
// senders where it goes out, of receivers where it comes in.
func translates(r *nftables.Rule, dev string, index uint32) bool {
	var out, in bool    // of some other interface alone
	var read *expr.Meta // what is compared
	for _, x := range r.Exprs {
		switch x := x.(type) {
		case *expr.Meta:
			read = x
		case *expr.Cmp:
			if read == nil || x.Op != expr.CmpOpEq {
				continue
			}
			switch read.Key {
			case expr.MetaKeyOIFNAME:
				out = out || !named(dev, x.Data)
			case expr.MetaKeyIIFNAME:
				in = in || !named(dev, x.Data)
			case expr.MetaKeyOIF:
				out = out || !bytes.Equal(x.Data, binary.NativeEndian.AppendUint32(nil, index))
			case expr.MetaKeyIIF:
				in = in || !bytes.Equal(x.Data, binary.NativeEndian.AppendUint32(nil, index))
			}
		case *expr.Masq:
			return !out
		case *expr.NAT:
			return x.Type == expr.NATTypeSourceNAT && !out || x.Type == expr.NATTypeDestNAT && !in
		case *expr.Target:
			switch x.Name {
			case "MASQUERADE", "SNAT":
				return !out
			case "DNAT":
				return !in
			case "NETMAP":
				return true
			}
		default:
			read = nil
		}
	}
	return false
}

// named says whether a name is what a rule asks for: all 16 bytes, or those it begins with
// ("eth*").
func named(name string, is []byte) bool {
	if i := bytes.IndexByte(is, 0); i >= 0 {
		return name == string(is[:i])
	}
	return strings.HasPrefix(name, string(is))
}
