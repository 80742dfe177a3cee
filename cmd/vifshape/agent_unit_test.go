package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// readUnit parses examples/vifshape-agent.service: the settings by their sections.
func readUnit(t *testing.T) map[string]map[string]string {
	t.Helper()
	b, err := os.ReadFile("../../examples/vifshape-agent.service")
	if err != nil {
		t.Fatal(err)
	}
	unit := map[string]map[string]string{}
	section := ""
	for i, line := range strings.Split(string(b), "\n") {
		switch key, value, ok := strings.Cut(line, "="); {
		case line == "" || line[0] == '#':
		case line[0] == '[' && line[len(line)-1] == ']':
			section = line[1 : len(line)-1]
			unit[section] = map[string]string{}
		case !ok || section == "" || unit[section][key] != "" || value == "":
			t.Errorf("line %d: %q", i+1, line)
		default:
			unit[section][key] = value
		}
	}
	return unit
}

// TestAgentUnit: the example's settings are ones that systemd knows, and its command
// is one of this program's.
func TestAgentUnit(t *testing.T) {
	unit := readUnit(t)
	known := map[string][]string{ // systemd.unit(5), systemd.service(5), systemd.exec(5)
		"Unit": {"Description", "Documentation"},
		"Service": {
			"Type", "ExecStart", "ExecReload", "Restart", "RestartSec", "CapabilityBoundingSet", "NoNewPrivileges",
			"ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "ProtectClock", "ProtectHostname", "ProtectKernelLogs",
			"LockPersonality", "MemoryDenyWriteExecute", "RestrictAddressFamilies", "RestrictNamespaces",
			"RestrictRealtime", "RestrictSUIDSGID", "SystemCallArchitectures", "SystemCallFilter", "SystemCallErrorNumber", "UMask",
		},
		"Install": {"WantedBy"},
	}
	for section, settings := range unit {
		for key := range settings {
			if !slices.Contains(known[section], key) {
				t.Errorf("[%s] %s is none of systemd's", section, key)
			}
		}
	}
	if unit["Service"]["Type"] != "notify" {
		t.Errorf("Type=%s, and the agent says when it is ready", unit["Service"]["Type"])
	}
	words := strings.Fields(unit["Service"]["ExecStart"])
	if len(words) < 2 || filepath.Base(words[0]) != "vifshape" {
		t.Fatalf("ExecStart=%v", words)
	}
	c, args, err := newRootCommand(&env{stdout: &strings.Builder{}, stderr: &strings.Builder{}}, nil).Find(words[1:])
	if err != nil {
		t.Fatal(err)
	}
	if c.Name() != "agent" {
		t.Errorf("ExecStart starts %q", c.Name())
	}
	if err := c.ParseFlags(args); err != nil {
		t.Error(err)
	}
	if err := c.ValidateArgs(c.Flags().Args()); err != nil {
		t.Error(err)
	}
	if unit["Service"]["RuntimeDirectory"] != "" {
		t.Error("RuntimeDirectory would end with the agent")
	}
	systemd, err := exec.LookPath("systemd-analyze")
	if err != nil {
		return // the rest is its opinion
	}
	// The program is not installed here.
	b, err := os.ReadFile("../../examples/vifshape-agent.service")
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "vifshape-agent.service")
	if err := os.WriteFile(copied, []byte(strings.Replace(string(b), words[0], "/bin/true", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(systemd, "verify", "--man=no", copied).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, filepath.Base(copied)) {
			t.Errorf("systemd-analyze: %s (%v)", line, err)
		}
	}
}
