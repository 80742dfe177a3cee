package doctor

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOwners(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"run/systemd/netif/links/3":                        "# This is private data.\nADMIN_STATE=configured\nNETWORK_FILE=/etc/systemd/network/10-eth0.network\nNETWORK_FILE_DROPINS=\"/etc/systemd/network/10-eth0.network.d/a.conf:/etc/systemd/network/10-eth0.network.d/b.conf\"\n",
		"etc/systemd/network/10-eth0.network":              "[Match]\nName=eth0\n[CAKE]\nBandwidth=10M\n",
		"etc/systemd/network/10-eth0.network.d/a.conf":     "[QDisc]\nParent=clsact\n",
		"etc/systemd/network/10-eth0.network.d/b.conf":     "; by hand\n[HierarchyTokenBucket]\nParent=root\n",
		"run/systemd/netif/links/4":                        "NETWORK_FILE=/etc/systemd/network/20-eth1.network\n",
		"etc/systemd/network/20-eth1.network":              "[Match]\nName=eth1\n[Network]\nDHCP=yes\n",
		"run/systemd/netif/links/9":                        "NETWORK_FILE=/usr/lib/systemd/network/30-eth2.network\n",
		"usr/lib/systemd/network/30-eth2.network":          "[Match]\nName=eth2\n",
		"etc/systemd/network/30-eth2.network.d/a.conf":     "[Network]\nDHCP=yes\n",
		"usr/lib/systemd/network/30-eth2.network.d/a.conf": "[TokenBucketFilter]\nRate=1M\n",
		"run/systemd/network/30-eth2.network.d/b.conf":     "[PFIFO]\nParent=root\n",
		"run/systemd/network/30-eth2.network.d/b.off":      "[CAKE]\nParent=root\n",
		"run/NetworkManager/devices/5":                     "[device]\nmanaged=true\nconnection-uuid=1b2c\n",
		"etc/NetworkManager/system-connections/a":          "[connection]\nuuid=1b2c\n[tc]\nqdisc.root=fq_codel\n",
		"run/NetworkManager/system-connections/b":          "[connection]\nuuid=0000\n[tc]\nqdisc.root=sfq\n",
		"run/NetworkManager/devices/6":                     "[device]\nmanaged=true\nconnection-uuid=0001\n",
		"usr/lib/NetworkManager/system-connections/c":      "[connection]\nuuid=0001\n[ipv4]\nmethod=auto\n",
		"run/NetworkManager/devices/7":                     "[device]\nmanaged=false\n",
		"run/NetworkManager/devices/8":                     "[device]\nmanaged=true\nconnection-uuid=0008\n",
		"etc/NetworkManager/system-connections/d":          "[connection]\nuuid=0008\n\n[tc]\n\n[proxy]\n",
		"run/NetworkManager/devices/nothing-of-the-number": "",
	} {
		file := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for index, want := range map[int][]owner{
		1: nil,
		3: {
			{"systemd-networkd", "/etc/systemd/network/10-eth0.network", "[CAKE]"},
			{"systemd-networkd", "/etc/systemd/network/10-eth0.network.d/b.conf", "[HierarchyTokenBucket]"},
		},
		4: nil,
		5: {{"NetworkManager", "/etc/NetworkManager/system-connections/a", "[tc]"}},
		6: nil,
		7: nil,
		8: {{"NetworkManager", "/etc/NetworkManager/system-connections/d", "[tc]"}},
		9: {{"systemd-networkd", "/run/systemd/network/30-eth2.network.d/b.conf", "[PFIFO]"}},
	} {
		if d := cmp.Diff(want, owners(root, index), cmp.AllowUnexported(owner{})); d != "" {
			t.Errorf("interface %d (-want +got):\n%s", index, d)
		}
	}
}

func TestTimerFinding(t *testing.T) {
	for hz, want := range map[uint64]Finding{
		1_000_000_000: {Group: groupMachine, Topic: "timers", State: good, Text: "high resolution"},
		250: {Group: groupMachine, Topic: "timers", State: Weaker, Text: "250 ticks a second, no high resolution",
			Follows: "queues are served every 4 ms: a burst below what the rate sends in that time loses throughput"},
	} {
		if d := cmp.Diff(want, timerFinding(hz)); d != "" {
			t.Errorf("%d (-want +got):\n%s", hz, d)
		}
	}
}
