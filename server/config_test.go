package server_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server"
)

// load reads text as a configuration file, with these variables.
func load(t *testing.T, text string, env map[string]string) (server.Config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "watchword.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, _, err := server.Load(server.Source{File: file, Data: t.TempDir(), Env: func(k string) (string, bool) {
		v, ok := env[k]
		return v, ok
	}})
	if err == nil {
		err = c.Check()
	}
	return c, err
}

func TestDefaultsThenFileThenEnvironment(t *testing.T) {
	c, err := load(t, "[server]\nnames = [\"hub.local\", \"192.168.1.9\"]\nhttps = \"0.0.0.0:8444\"\n[token]\nlifetime = \"5m\"\n[command]\nttl = \"30s\"\n",
		map[string]string{"WATCHWORD_COMMAND_TTL": "45s", "WATCHWORD_LIMITS_TOKEN_RATE": "7"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Token.Lifetime.Duration != 5*time.Minute || c.Command.TTL.Duration != 45*time.Second || c.Limits.TokenRate != 7 || c.Limits.Connections != 10_000 {
		t.Errorf("got %+v", c)
	}
	if got := c.PublicURL(); got != "https://hub.local:8444" {
		t.Errorf("public url %s", got)
	}
	c, err = load(t, "", map[string]string{"WATCHWORD_SERVER_NAMES": "a.example, b.example", "WATCHWORD_SERVER_HTTPS": "[::]:443"})
	if err != nil || c.PublicURL() != "https://a.example" || len(c.Server.Names) != 2 {
		t.Errorf("got %s, %v", c.PublicURL(), err)
	}
	if c, err = load(t, "", nil); err != nil || c.PublicURL() != "https://localhost:8443" {
		t.Errorf("got %s, %v", c.PublicURL(), err)
	}
}

func TestInvalidConfigurationHasAPosition(t *testing.T) {
	const acme, terms = "[server]\nacme_domain = [\"hub.example\"]\n", "acme_accept_terms = true\n"
	for _, tc := range []struct{ name, text, says string }{
		{"an unknown section", "[sever]\nhttps = \"x\"\n", ":1:2: unknown key sever"},
		{"a renamed key", "[limits]\nkept_bytes = 1048576\n", ":2:1: unknown key limits.kept_bytes; it was renamed to limits.offline_bytes"},
		{"another renamed key", "[limits]\nsubject_kept_bytes = 65536\n", ":2:1: unknown key limits.subject_kept_bytes; it was renamed to limits.subject_offline_bytes"},
		{"an unknown key", "[token]\nlifetme = \"5m\"\n", ":2:1: unknown key token.lifetme; did you mean token.lifetime?"},
		{"an unknown key of an inline table", "token = { lifetme = \"5m\" }\n", ":1:11: unknown key token.lifetme; did you mean token.lifetime?"},
		{"no TOML", "[token\n", ":1:"},
		{"a wrong type", "[limits]\nconnections = \"many\"\n", ":2:15:"},
		{"an invalid duration", "[token]\nlifetime = \"soon\"\n", ":2:12:"},
		{"a duration as a number", "[token]\nlifetime = 600\n", ":2:1:"},
		{"a token that lives too long", "[token]\nlifetime = \"48h\"\n", "token.lifetime"},
		{"a retention that is shorter than idempotency keys", "[command]\nretain = \"47h\"\n", "command.retain"},
		{"half a second of a command", "[command]\nttl = \"1500ms\"\n", "command.ttl"},
		{"a pairing that lives too long", "[pairing]\nlifetime = \"2h\"\n", "pairing.lifetime"},
		{"a pairing that lives by half seconds", "[pairing]\nlifetime = \"60500ms\"\n", "pairing.lifetime"},
		{"polls without a pause", "[pairing]\ninterval = \"0s\"\n", "pairing.interval"},
		{"an address beyond loopback", "[server]\nhttps = \"0.0.0.0:8443\"\n", "server.https"},
		{"an address of another machine", "[server]\nhttps = \"hub.local:8443\"\n", "server.https"},
		{"MQTT beyond loopback, with no names", "[server]\nmqtts = \":8883\"\n", "server.mqtts"},
		{"plain MQTT beyond loopback, even with names", "[server]\nnames = [\"hub\"]\nmqtt = \"0.0.0.0:1883\"\n", "server.mqtt"},
		{"an invalid address", "[server]\nhttps = \"8443\"\n", "server.https"},
		{"a certificate without its key", "[server]\ntls_cert = \"c.pem\"\n", "server.tls_cert"},
		{"an ACME key without a name", "[server]\nacme_accept_terms = true\n", "server.acme_accept_terms is used only with server.acme_domain"},
		{"an ACME directory without a name", "[server]\nacme_directory = \"https://ca.local/dir\"\n", "server.acme_directory is used only with"},
		{"terms that are not accepted", acme + "acme_accept_terms = false\n", "server.acme_accept_terms must be true"},
		{"two certificates", acme + terms + "tls_cert = \"c.pem\"\ntls_key = \"k.pem\"\n", "server.acme_domain must not be set together"},
		{"a wildcard", "[server]\nacme_domain = [\"*.hub.example\"]\n" + terms, "server.acme_domain"},
		{"an address as a name", "[server]\nacme_domain = [\"192.0.2.1\"]\n" + terms, "server.acme_domain must be DNS names"},
		{"an IPv6 address as a name", "[server]\nacme_domain = [\"2001:db8::1\"]\n" + terms, "server.acme_domain must be DNS names"},
		{"a local name", "[server]\nacme_domain = [\"LOCALHOST.\"]\n" + terms, "server.acme_domain must be DNS names"},
		{"a name that no CA takes", "[server]\nacme_domain = [\"a_b.example\"]\n" + terms, "server.acme_domain must be DNS names"},
		{"101 names", "[server]\nacme_domain = [" + strings.Repeat("\"hub.example\",", 101) + "]\n" + terms, "server.acme_domain must have at most 100"},
		{"a directory without TLS", acme + terms + "acme_directory = \"http://ca.local/dir\"\n", "server.acme_directory must be"},
		{"a directory with a user", acme + terms + "acme_directory = \"https://u:p@ca.local/dir\"\n", "server.acme_directory must be"},
		{"a directory without a host", acme + terms + "acme_directory = \"https:///dir\"\n", "server.acme_directory must be"},
		{"two contacts", acme + terms + "acme_email = \"a@b.example,c@d.example\"\n", "server.acme_email must be"},
		{"a contact without a host", acme + terms + "acme_email = \"admin@\"\n", "server.acme_email must be"},
		{"a contact without a user", acme + terms + "acme_email = \"@b.example\"\n", "server.acme_email must be"},
		{"a contact with a header", acme + terms + "acme_email = \"a@b.example?subject=x\"\n", "server.acme_email must be"},
		{"a port alone", acme + terms + "acme_http = \"80\"\n", "server.acme_http must be"},
		{"an external account without its key", acme + terms + "acme_eab_kid = \"k\"\n", "server.acme_eab_kid must be given together"},
		{"an external key without its account", acme + terms + "acme_eab_key = \"zWNDZM6eQGHWpSRTPal5eA\"\n", "server.acme_eab_kid must be given together"},
		{"an external key of 15 bytes", acme + terms + "acme_eab_kid = \"k\"\nacme_eab_key = \"zWNDZM6eQGHWpSRTPal5\"\n", "server.acme_eab_key must be at least 16 bytes"},
		{"a proxy's certificate and one of the server", "[server]\npublic_url = \"https://hub.example\"\nproxy_certificate = true\ntls_cert = \"c\"\ntls_key = \"k\"\n", "server.proxy_certificate"},
		{"a proxy's certificate without an address", "[server]\nproxy_certificate = true\n", "server.proxy_certificate"},
		{"an invalid name", "[server]\nnames = [\"hub local\"]\n", "server.names"},
		{"a public url with a path", "[server]\npublic_url = \"https://hub.local/x\"\n", "server.public_url"},
		{"a public url without TLS", "[server]\npublic_url = \"http://hub.local\"\n", "server.public_url"},
		{"a store that is not there", "[store]\nurl = \"postgres://u:secret@h/db\"\n", "store.url"},
		{"an invalid recipient", "[backup]\nrecipients = [\"age1x\"]\n", "backup.recipients is not valid: the recipient \"age1x\" must be a public key of age"},
		{"backups every minute", "[backup]\nevery = \"1m\"\n", "backup.every must be from 10m0s"},
		{"one backup alone", "[backup]\nkeep = 1\n", "backup.keep must be from 2"},
		{"a schedule without a folder", "[backup]\nevery = \"24h\"\n", "backup.dir is required"},
		{"a schedule without a recipient", "[backup]\nevery = \"24h\"\ndir = \"/mnt\"\n", "backup.recipients is required"},
		{"a journal without a recipient", "[backup]\njournal = \"/mnt\"\n", "backup.recipients is required"},
		{"a folder that is relative", "[backup]\ndir = \"backups\"\n", "backup.dir must be an absolute path"},
		{"a private key as a recipient", "[backup]\nrecipients = [\"AGE-SECRET-KEY-1X\"]\n", "backup.recipients is not valid: a recipient is an identity, a private key"},
		{"an invalid log level", "[log]\nlevel = \"loud\"\n", "log.level"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := load(t, tc.text, nil)
			e, ok := errors.AsType[*watchword.Error](err)
			if !ok || e.Code != watchword.ConfigInvalid {
				t.Fatalf("got %v", err)
			}
			if all := e.Field + " " + e.Detail; !strings.Contains(all, tc.says) || strings.Contains(all, "secret") {
				t.Errorf("got %q, want %q", all, tc.says)
			}
		})
	}
	if _, err := load(t, "", map[string]string{"WATCHWORD_TOKEN_LIFETIME": "soon"}); watchword.CodeOf(err) != watchword.ConfigInvalid {
		t.Errorf("a bad variable: %v", err)
	}
}

func TestACMENames(t *testing.T) {
	text := "[server]\nacme_domain = [\"Hub.example.\", \"mqtt.example\"]\nacme_accept_terms = true\nacme_email = \"admin@hub.example\"\nhttps = \":443\"\nacme_http = \":80\"\nacme_eab_kid = \"k\"\nacme_eab_key = \"zWNDZM6eQGHWpSRTPal5eA==\"\n"
	c, err := load(t, text, nil)
	if err != nil || c.PublicURL() != "https://hub.example" {
		t.Fatalf("got %s, %v", c.PublicURL(), err)
	}
	if printed, err := c.Print(); err != nil || strings.Contains(string(printed), "zWNDZM6") {
		t.Errorf("printed: %s %v", printed, err)
	}
	// A server that had a name keeps it.
	if c, err = load(t, text+"names = [\"old.example\"]\n", nil); err != nil || c.PublicURL() != "https://old.example" {
		t.Errorf("got %s, %v", c.PublicURL(), err)
	}
	c, err = load(t, "", map[string]string{"WATCHWORD_SERVER_ACME_DOMAIN": "a.example,b.example", "WATCHWORD_SERVER_ACME_ACCEPT_TERMS": "true"})
	if err != nil || len(c.Server.AcmeDomain) != 2 || !c.Server.AcmeAcceptTerms {
		t.Errorf("got %+v, %v", c.Server, err)
	}
	if _, err = load(t, "", map[string]string{"WATCHWORD_SERVER_ACME_ACCEPT_TERMS": "perhaps"}); watchword.CodeOf(err) != watchword.ConfigInvalid {
		t.Errorf("a variable that is no truth value: %v", err)
	}
}

func TestSecretsComeFromPrivateFilesAndAreMasked(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "store")
	if err := os.WriteFile(file, []byte("hush\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Check refuses the value, since it names no store of this version; it was read from the file nevertheless.
	c, err := load(t, "[store]\nurl_file = \"store\"\n", map[string]string{"CREDENTIALS_DIRECTORY": dir})
	if watchword.CodeOf(err) != watchword.ConfigInvalid || strings.Contains(err.Error(), "hush") || c.Store.URL != "hush" {
		t.Fatalf("got %q, %v", c.Store.URL, err)
	}
	text, err := c.Print()
	if err != nil || strings.Contains(string(text), "hush") || !strings.Contains(string(text), "[secret]") {
		t.Errorf("printed: %s %v", text, err)
	}
	if c.Store.URL != "hush" {
		t.Error("printing masked the configuration itself")
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := load(t, "[store]\nurl_file = \""+file+"\"\n", nil); watchword.CodeOf(err) != watchword.KeyExposed {
		t.Errorf("a secret that others can read: %v", err)
	}
}

// A key of a feature that is not in this version stops the start, in whatever form it is written and even with its default
// value, so that no operator relies on it.
func TestKeysOfAbsentPartsAreRefused(t *testing.T) {
	keys := []string{
		"server.console",
		"cluster.node", "cluster.routes", "cluster.listen", "cluster.secret", "cluster.secret_file",
		"token.skew",
		"auth.oidc_issuer", "auth.oidc_client_id", "auth.oidc_client_secret", "auth.oidc_client_secret_file", "auth.session_lifetime",
	}
	for _, key := range keys {
		section, name, _ := strings.Cut(key, ".")
		for _, text := range []string{"[" + section + "]\n" + name + " = \"60s\"\n", key + " = \"60s\"\n", section + " = { " + name + " = [] }\n"} {
			_, err := load(t, text, nil)
			if watchword.CodeOf(err) != watchword.ConfigInvalid || !strings.Contains(err.Error(), " is not in this version") || !strings.Contains(err.Error(), section) {
				t.Errorf("%q: got %v", text, err)
			}
		}
		variable := "WATCHWORD_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
		for _, value := range []string{"60s", ""} {
			_, err := load(t, "", map[string]string{variable: value})
			if watchword.CodeOf(err) != watchword.ConfigInvalid || !strings.Contains(err.Error(), key+" is not in this version") {
				t.Errorf("%s=%q: got %v", variable, value, err)
			}
		}
	}
	if _, err := load(t, "[cluster]\n", nil); err == nil || !strings.Contains(err.Error(), ":1:2: cluster is not in this version") {
		t.Errorf("an empty section: got %v", err)
	}
	if _, err := load(t, "[token]\nskev = \"60s\"\n", nil); err == nil || strings.Contains(err.Error(), "not in this version") {
		t.Errorf("an unknown key beside them: got %v", err)
	}
}
