package server_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server"
)

func TestUnknownVariableIsRefusedWithTheNearest(t *testing.T) {
	for name, says := range map[string]string{
		"WATCHWORD_SERVER_HTPS":        "unknown variable WATCHWORD_SERVER_HTPS; did you mean WATCHWORD_SERVER_HTTPS?",
		"WATCHWORD_DTA":                "did you mean WATCHWORD_DATA?",
		"WATCHWORD_CONTXT":             "did you mean WATCHWORD_CONTEXT?",
		"WATCHWORD_LIMITS_KEPT_BYTES":  "it was renamed to WATCHWORD_LIMITS_OFFLINE_BYTES",
		"WATCHWORD_SERVER_CONSOLE":     "server.console is not in this version: remove the variable",
		"WATCHWORD_LOG_SOMETHING_ELSE": "unknown variable WATCHWORD_LOG_SOMETHING_ELSE",
		"WATCHWORD_":                   "unknown variable WATCHWORD_",
		"WATCHWORD_SERVICE_HOSTS":      "unknown variable WATCHWORD_SERVICE_HOSTS",
	} {
		environ := []string{"HOME=/root", name + "=s3cret", "WATCHWORD_DATA=/d"}
		err := server.CheckVariables(environ)
		if watchword.CodeOf(err) != watchword.ConfigInvalid || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v, want %q", name, err, says)
		}
		if _, _, lerr := server.Load(server.Source{Data: t.TempDir(), Environ: environ, Env: func(string) (string, bool) { return "", false }}); watchword.CodeOf(lerr) != watchword.ConfigInvalid || lerr.Error() != err.Error() {
			t.Errorf("%s: Load says %v", name, lerr)
		}
	}
}

func TestVariablesThatAreNotMisspeltAreAccepted(t *testing.T) {
	environ := []string{
		"PATH=/bin", "WATCHWORDS=1", "watchword_x=1", "XWATCHWORD_DTA=1",
		"WATCHWORD_DATA=/d", "WATCHWORD_CONTEXT=c", "WATCHWORD_COMMAND=cmd_1", "WATCHWORD_FUNCTION=f", "WATCHWORD_BY=a", "WATCHWORD_SEQ=1", "WATCHWORD_RUN=r",
		"WATCHWORD_SERVICE_HOST=10.0.0.1", "WATCHWORD_SERVICE_PORT=8443", "WATCHWORD_SERVICE_PORT_HTTPS=8443", "WATCHWORD_PORT=tcp://10.0.0.1:8443", "WATCHWORD_PORT_8443_TCP=tcp://10.0.0.1:8443",
		"WATCHWORD_PORT_8443_TCP_PROTO=tcp", "WATCHWORD_PORT_8443_TCP_PORT=8443", "WATCHWORD_PORT_8443_TCP_ADDR=10.0.0.1", "WATCHWORD_MQTT_SERVICE_HOST=10.0.0.2",
		"CREDENTIALS_DIRECTORY=/run/credentials/watchword.service",
	}
	printed, err := server.Defaults().Print()
	if err != nil {
		t.Fatal(err)
	}
	section := ""
	for line := range strings.SplitSeq(string(printed), "\n") { // each key of the configuration
		if name, ok := strings.CutPrefix(line, "["); ok {
			section = strings.TrimSuffix(name, "]")
		} else if key, _, ok := strings.Cut(line, " = "); ok {
			environ = append(environ, "WATCHWORD_"+strings.ToUpper(section+"_"+key)+"=x")
		}
	}
	if len(environ) < 60 {
		t.Fatalf("only %d variables", len(environ))
	}
	if err := server.CheckVariables(environ); err != nil {
		t.Error(err)
	}
}

// Each variable that a file of this project sets or names is one that the program accepts.
func TestVariablesOfDeploymentsAreAccepted(t *testing.T) {
	name := regexp.MustCompile(`\bWATCHWORD_[A-Z][A-Z_]*[A-Z]\b`)
	seen := 0
	for _, pattern := range []string{"../deploy/*/*", "../docs/*.md", "../docs/deploy/*.md", "../README.md", "../Makefile"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				continue // a folder
			}
			for _, v := range name.FindAllString(string(b), -1) {
				seen++
				if err := server.CheckVariables([]string{v + "=x"}); err != nil {
					t.Errorf("%s: %v", file, err)
				}
			}
		}
	}
	if seen < 10 {
		t.Errorf("found %d variables", seen)
	}
}
