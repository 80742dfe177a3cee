package nft

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
)

// classifyModule is what iptables' CLASSIFY, in its old form and in that of
// iptables-nft, needs.
const classifyModule = "xt_CLASSIFY"

// PriorityRules lists the chains of this network namespace's firewall with rules
// that write a packet's priority, which is where HTB looks for a class: "inet
// filter output". Tables named vifshape are left out. Rules of the old iptables
// cannot be listed; that there are some, in this namespace or another, is said by
// the name of their module. Needs CAP_NET_ADMIN.
func PriorityRules() ([]string, error) {
	found, err := chainsWith(0, writesPriority)
	if err == nil && len(found) == 0 && inUse(classifyModule) {
		found = append(found, "module "+classifyModule)
	}
	return found, err
}

// chainsWith lists the chains of the firewall of a network namespace, 0 for the caller's, with
// rules of a kind, but for those of tables named vifshape.
func chainsWith(netNS int, kind func(*nftables.Rule) bool) (found []string, err error) {
	c, err := nftables.New(nftables.WithNetNSFd(netNS))
	if err != nil {
		return nil, fmt.Errorf("look for firewall rules: %w", err)
	}
	chains, err := c.ListChains()
	switch {
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("look for firewall rules: %w", caps.Explain(err, unix.CAP_NET_ADMIN))
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), noNetfilter(err): // no nf_tables in this kernel
	case err != nil:
		return nil, fmt.Errorf("look for firewall rules: %w", err)
	}
	for _, chain := range chains {
		if chain.Table.Name == tableName {
			continue
		}
		rules, err := c.GetRules(chain.Table, chain)
		if errors.Is(err, unix.ENOENT) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("read firewall rules of %s %s: %w", chain.Table.Name, chain.Name, err)
		}
		if slices.ContainsFunc(rules, kind) {
			found = append(found, fmt.Sprintf("%s %s %s", families[chain.Table.Family], chain.Table.Name, chain.Name))
		}
	}
	return found, nil
}

// families are nft's words.
var families = map[nftables.TableFamily]string{
	nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6",
	nftables.TableFamilyARP: "arp", nftables.TableFamilyNetdev: "netdev", nftables.TableFamilyBridge: "bridge",
}

func writesPriority(r *nftables.Rule) bool {
	return slices.ContainsFunc(r.Exprs, func(x expr.Any) bool {
		switch x := x.(type) {
		case *expr.Meta:
			return x.Key == expr.MetaKeyPRIORITY && x.SourceRegister
		case *expr.Target:
			return x.Name == "CLASSIFY"
		}
		return false
	})
}

// inUse says whether something holds a module. One that is part of the kernel does
// not tell.
func inUse(module string) bool {
	b, err := os.ReadFile("/proc/modules")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == module {
			return f[2] != "0"
		}
	}
	return false
}
