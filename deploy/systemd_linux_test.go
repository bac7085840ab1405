package deploy_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// units are the units, and the highest exposure that systemd-analyze security may state of each, times 10: what is left is the
// network, and in the agent what its programs need.
var units = map[string]string{"watchword.service": "17", "watchword-agent.service": "22"}

func TestUnitsAreValidAndHardened(t *testing.T) {
	analyze := outside(t, "systemd-analyze")
	for unit, threshold := range units {
		text := read(t, filepath.Join("systemd", unit))
		dir := t.TempDir()
		path := filepath.Join(dir, unit)
		// verify wants that the program exists.
		must(t, os.WriteFile(path, []byte(strings.ReplaceAll(text, "/usr/bin/watchword", binary(t))), 0o644))
		if out := tool(t, analyze, "verify", path); out != "" { // an unknown key is only a warning
			t.Errorf("%s: %s", unit, out)
		}
		if out, err := tryTool(t, analyze, "security", "--offline=true", "--no-pager", "--threshold="+threshold, path); err != nil {
			t.Errorf("%s: %v\n%s", unit, err, out)
		}
	}
}

// The server reads whether a time service disciplines the clock (adjtimex), which two settings of systemd refuse: without that its clock
// would not be trusted.
func TestTheServerMayReadTheStateOfTheClock(t *testing.T) {
	text := read(t, "systemd/watchword.service")
	if !strings.Contains(text, "\nSystemCallFilter=adjtimex") || strings.Contains(text, "\nProtectClock=") {
		t.Error("the unit refuses adjtimex")
	}
}
