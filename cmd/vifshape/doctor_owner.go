package main

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// networkdSections are those in which systemd.network(5) sets up the queueing of
// what an interface sends: classes and qdiscs of systemd 252 and later.
var networkdSections = []string{
	"QDisc", "NetworkEmulator", "TokenBucketFilter", "PIE", "FlowQueuePIE", "StochasticFairBlue", "StochasticFairnessQueueing",
	"BFIFO", "PFIFO", "PFIFOHeadDrop", "PFIFOFast", "CAKE", "ControlledDelay", "DeficitRoundRobinScheduler", "DeficitRoundRobinSchedulerClass",
	"EnhancedTransmissionSelection", "GenericRandomEarlyDetection", "FairQueueingControlledDelay", "FairQueueing", "TrivialLinkEqualizer",
	"HierarchyTokenBucket", "HierarchyTokenBucketClass", "ClassfulMultiQueueing", "BandMultiQueueing", "HeavyHitterFilter",
	"QuickFairQueueing", "QuickFairQueueingClass",
}

// owner is a configuration that sets up the queueing of an interface.
type owner struct {
	name    string // of the program
	file    string
	section string
}

// owners lists the configurations of network managers below root ("/") that set up
// queueing on the interface with that index in the initial network namespace. Those
// that cannot be read are left out.
func owners(root string, index int) []owner {
	return append(networkd(root, index), networkManager(root, index)...)
}

// networkd looks at the files that systemd-networkd applied to an interface, as
// its state file says (link_save, src/network/networkd-state-file.c, systemd 252).
func networkd(root string, index int) (found []owner) {
	state := readINI(filepath.Join(root, "run/systemd/netif/links", strconv.Itoa(index)))[""]
	files := append([]string{state["NETWORK_FILE"]}, strings.Fields(strings.Trim(state["NETWORK_FILE_DROPINS"], `"`))...)
	for _, file := range files {
		if file == "" {
			continue
		}
		sections := readINI(filepath.Join(root, file))
		for _, s := range networkdSections {
			keys, ok := sections[s]
			// Those for received traffic are not in the way of a tree, and what
			// has another parent needs one at the root.
			if parent := keys["Parent"]; ok && parent != "clsact" && parent != "ingress" {
				found = append(found, owner{"systemd-networkd", file, "[" + s + "]"})
			}
		}
	}
	return found
}

// networkManager looks at the profile that NetworkManager has active on an
// interface, as its state file says (nm_config_device_state_load,
// src/core/nm-config.c, NetworkManager 1.42). Without a section tc it leaves
// queueing alone (nm-settings(5)). Profiles are root's to read.
func networkManager(root string, index int) (found []owner) {
	state := readINI(filepath.Join(root, "run/NetworkManager/devices", strconv.Itoa(index)))["device"]
	uuid := state["connection-uuid"]
	if uuid == "" || state["managed"] != "true" && state["managed"] != "1" {
		return nil
	}
	for _, dir := range []string{"etc/NetworkManager", "run/NetworkManager", "usr/lib/NetworkManager"} {
		files, err := filepath.Glob(filepath.Join(root, dir, "system-connections", "*"))
		if err != nil {
			continue
		}
		for _, f := range files {
			sections := readINI(f)
			if sections["connection"]["uuid"] != uuid {
				continue
			}
			for key := range sections["tc"] {
				if strings.HasPrefix(key, "qdisc.") {
					found = append(found, owner{"NetworkManager", "/" + strings.TrimPrefix(strings.TrimPrefix(f, root), "/"), "[tc]"})
					break
				}
			}
		}
	}
	return found
}

// readINI reads the sections of a file with their keys; keys before the first are
// in section "". Sections of one name are one. A file that cannot be read has none.
func readINI(file string) map[string]map[string]string {
	sections := map[string]map[string]string{}
	f, err := os.Open(file)
	if err != nil {
		return sections
	}
	defer f.Close()
	name := ""
	for s := bufio.NewScanner(f); s.Scan(); {
		line := strings.TrimSpace(s.Text())
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
			continue
		case line[0] == '[' && strings.HasSuffix(line, "]"):
			name = line[1 : len(line)-1]
		}
		if sections[name] == nil {
			sections[name] = map[string]string{}
		}
		if key, value, ok := strings.Cut(line, "="); ok && line[0] != '[' {
			sections[name][strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
	}
	return sections
}
