package doctor

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// networkdSections are those in which systemd.network(5) sets up the queueing of
// what an interface sends. QDisc is not among them: it is for received traffic.
var networkdSections = []string{
	"NetworkEmulator", "TokenBucketFilter", "PIE", "FlowQueuePIE", "StochasticFairBlue", "StochasticFairnessQueueing",
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
// its state file says; colons part the drop-ins (serialize_config_files,
// src/network/networkd-state-file.c, systemd commit 001afcd6b8e5), which systemd 252
// does not tell of.
func networkd(root string, index int) (found []owner) {
	state := readINI(filepath.Join(root, "run/systemd/netif/links", strconv.Itoa(index)))[""]
	network := state["NETWORK_FILE"]
	dropIns := strings.Split(strings.Trim(state["NETWORK_FILE_DROPINS"], `"`), ":")
	if _, told := state["NETWORK_FILE_DROPINS"]; !told && network != "" {
		dropIns = networkdDropIns(root, filepath.Base(network)+".d")
	}
	for _, file := range append([]string{network}, dropIns...) {
		if file == "" {
			continue
		}
		sections := readINI(filepath.Join(root, file))
		for _, s := range networkdSections {
			// Whatever is not at the root itself needs one there.
			if _, ok := sections[s]; ok {
				found = append(found, owner{"systemd-networkd", file, "[" + s + "]"})
			}
		}
	}
	return found
}

// networkdDropIns are the files in the folders of a name. Of those that are called the
// same the first counts (systemd.network(5)).
func networkdDropIns(root, folder string) (files []string) {
	seen := map[string]bool{}
	for _, dir := range []string{"/etc", "/run", "/usr/local/lib", "/usr/lib"} {
		dir = filepath.Join(dir, "systemd/network", folder)
		entries, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil {
			continue
		}
		for _, e := range entries {
			if name := e.Name(); strings.HasSuffix(name, ".conf") && !seen[name] {
				seen[name] = true
				files = append(files, filepath.Join(dir, name))
			}
		}
	}
	return files
}

// networkManager looks at the profile that NetworkManager has active on an
// interface, as its state file says (nm_config_device_state_write in its
// nm-config.c), which names one only where it manages the interface. Without a
// section tc it leaves queueing alone; with one that is empty, too, it removes all
// qdiscs (nm-settings(5), tc). Profiles are root's to read.
func networkManager(root string, index int) (found []owner) {
	state := readINI(filepath.Join(root, "run/NetworkManager/devices", strconv.Itoa(index)))["device"]
	uuid := state["connection-uuid"]
	if uuid == "" {
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
			if _, ok := sections["tc"]; ok {
				found = append(found, owner{"NetworkManager", "/" + strings.TrimPrefix(strings.TrimPrefix(f, root), "/"), "[tc]"})
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
