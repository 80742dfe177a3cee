package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vifshape/vifshape/cmd/internal/enabled"
	"github.com/vifshape/vifshape/cmd/internal/listen"
	"github.com/vifshape/vifshape/examples"
)

// readUnit parses a unit: the settings by their sections. Those that are written more than once
// are the last of them; which may be says more.
func readUnit(t *testing.T, text string, more ...string) map[string]map[string]string {
	t.Helper()
	unit := map[string]map[string]string{}
	section := ""
	for i, line := range strings.Split(text, "\n") {
		switch key, value, ok := strings.Cut(line, "="); {
		case line == "" || line[0] == '#':
		case line[0] == '[' && line[len(line)-1] == ']':
			section = line[1 : len(line)-1]
			unit[section] = map[string]string{}
		case !ok || section == "" || unit[section][key] != "" && !slices.Contains(more, key):
			t.Errorf("line %d: %q", i+1, line)
		case unit[section][key] == "":
			unit[section][key] = value
		}
	}
	return unit
}

// readAgentUnit is the example. A reload is two commands, of which the first is ours.
func readAgentUnit(t *testing.T) map[string]map[string]string {
	return readUnit(t, examples.Unit, "ExecReload")
}

// verify has systemd, where it is installed, give its opinion of units of examples, by their
// names. The program is not installed here.
func verify(t *testing.T, units map[string]string) {
	t.Helper()
	systemd, err := exec.LookPath("systemd-analyze")
	if err != nil {
		return
	}
	dir, args := t.TempDir(), []string{"verify", "--man=no"}
	for name, text := range units {
		copied := filepath.Join(dir, name)
		if err := os.WriteFile(copied, []byte(strings.ReplaceAll(text, installPath, "/bin/true")), 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, copied)
	}
	out, err := exec.Command(systemd, args...).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		for name := range units {
			if strings.Contains(line, name) {
				t.Errorf("systemd-analyze: %s (%v)", line, err)
			}
		}
	}
}

// TestAgentUnit: the example's settings are ones that systemd knows, and its command
// is one of this program's.
func TestAgentUnit(t *testing.T) {
	unit := readAgentUnit(t)
	known := map[string][]string{ // systemd.unit(5), systemd.service(5), systemd.exec(5)
		"Unit": {"Description", "Documentation", "DefaultDependencies", "Wants", "After", "Before", "Conflicts"},
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
	for key, name := range map[string]string{"ExecStart": "agent", "ExecReload": "apply"} {
		words := strings.Fields(unit["Service"][key])
		if len(words) < 2 || filepath.Base(words[0]) != "vifshape" {
			t.Fatalf("%s=%v", key, words)
		}
		c, args, err := newRootCommand(&env{stdout: &strings.Builder{}, stderr: &strings.Builder{}}, nil).Find(words[1:])
		if err != nil {
			t.Fatal(err)
		}
		if c.Name() != name {
			t.Errorf("%s starts %q", key, c.Name())
		}
		if err := c.ParseFlags(args); err != nil {
			t.Error(err)
		}
		if err := c.ValidateArgs(c.Flags().Args()); err != nil {
			t.Error(err)
		}
		if dir := c.Flags().Lookup("policies").Value.String(); dir != enabled.DefaultDir {
			t.Errorf("%s goes by the policies of %q", key, dir)
		}
	}
	if unit["Service"]["RuntimeDirectory"] != "" {
		t.Error("RuntimeDirectory would end with the agent")
	}
	verify(t, map[string]string{agentService: examples.Unit})
}

// TestExporterUnit: the same of the exporter's, and its socket is one that the exporter takes.
func TestExporterUnit(t *testing.T) {
	texts := map[string]string{}
	for _, name := range []string{exporterService, exporterSocket} {
		text, err := os.ReadFile("../../examples/" + name)
		if err != nil {
			t.Fatal(err)
		}
		texts[name] = string(text)
	}
	start := strings.Fields(readUnit(t, texts[exporterService], "SystemCallFilter")["Service"]["ExecStart"])
	if len(start) != 2 || start[0] != installPath || start[1] != "exporter" {
		t.Errorf("it starts %q", start)
	}
	at := readUnit(t, texts[exporterSocket])["Socket"]["ListenStream"]
	if _, err := listen.ParseAddress(at); err != nil {
		t.Errorf("ListenStream: %v", err)
	}
	if config, err := os.ReadFile(filepath.Join(prometheusExamples, "prometheus.yml")); err != nil || !strings.Contains(string(config), at) {
		t.Errorf("Prometheus does not ask at %s: %v", at, err)
	}
	verify(t, texts)
}
