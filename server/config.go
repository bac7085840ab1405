package server

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/backup"
	"github.com/watchword-iot/watchword/server/enroll"
	"github.com/watchword-iot/watchword/token"
)

// Config is the whole configuration (watchword.toml). Make one with [Defaults] or [Load]; the zero
// value is not usable. Durations are written as in "10m".
type Config struct {
	Data    string        `toml:"-"` // data folder, from the flag --data or WATCHWORD_DATA
	Server  ServerConfig  `toml:"server"`
	Store   StoreConfig   `toml:"store"`
	Keys    KeysConfig    `toml:"keys"`
	Token   TokenConfig   `toml:"token"`
	Command CommandConfig `toml:"command"`
	Pairing PairingConfig `toml:"pairing"`
	Limits  LimitsConfig  `toml:"limits"`
	Audit   AuditConfig   `toml:"audit"`
	Log     LogConfig     `toml:"log"`
	Metrics MetricsConfig `toml:"metrics"`
	Backup  BackupConfig  `toml:"backup"`

	Text []byte `toml:"-"` // of the configuration file, as it was read; nil: there was none
}

// ServerConfig holds the addresses of the listeners. PublicURL defaults to https://, the first of
// Names or else of AcmeDomain or else localhost, and the port of HTTPS; PublicMQTTS to its host and the port of MQTTS. The server's own
// CA issues a certificate for Names and the hosts of both, unless TLSCert and TLSKey name one; with AcmeDomain, clients that ask for one
// of those names get the certificate of an ACME CA, once there is one.
type ServerConfig struct {
	PublicURL   string   `toml:"public_url"`
	PublicMQTTS string   `toml:"public_mqtts"`
	HTTPS       string   `toml:"https"`
	MQTTS       string   `toml:"mqtts"`
	MQTT        string   `toml:"mqtt"` // without TLS; loopback addresses only
	Names       []string `toml:"names"`
	TLSCert     string   `toml:"tls_cert"`
	TLSKey      string   `toml:"tls_key"`
	// Addresses or prefixes of proxies: those whose connections begin with a PROXY header, version 1 or 2; and those that name
	// the client of an HTTP request in the header Forwarded or X-Forwarded-For.
	ProxyProtocol  []string `toml:"proxy_protocol"`
	TrustedProxies []string `toml:"trusted_proxies"`
	TLSMin         string   `toml:"tls_min"` // "1.3", or "1.2" for devices without TLS 1.3

	// ProxyCertificate: clients reach the server through a proxy that ends TLS with a certificate of the public Web PKI.
	ProxyCertificate bool `toml:"proxy_certificate"`

	AcmeDomain      []string `toml:"acme_domain"`       // DNS names of a certificate that is ordered by ACME; empty: none is
	AcmeEmail       string   `toml:"acme_email"`        // contact of the account; empty: none
	AcmeDirectory   string   `toml:"acme_directory"`    // of the CA
	AcmeAcceptTerms bool     `toml:"acme_accept_terms"` // the operator accepts the CA's terms of service
	AcmeCA          string   `toml:"acme_ca"`           // PEM file of a private CA that clients trust beside the public ones
	AcmeHTTP        string   `toml:"acme_http"`         // listener for validations by HTTP-01; empty: TLS-ALPN-01 on the HTTPS port
	AcmeEABKID      string   `toml:"acme_eab_kid"`      // external account, where the CA requires one
	AcmeEABKey      string   `toml:"acme_eab_key" secret:"true"`
	AcmeEABKeyFile  string   `toml:"acme_eab_key_file"`

	// MQTTControlCharacters accepts MQTT strings with control characters or non-characters.
	MQTTControlCharacters bool `toml:"mqtt_control_characters"`
}

// StoreConfig selects the store: "sqlite" is a database file in the data folder.
type StoreConfig struct {
	URL     string `toml:"url" secret:"true"`
	URLFile string `toml:"url_file"`
}

// KeysConfig sets the file of the key-encryption key, and the rotation of keys.
type KeysConfig struct {
	KEKFile     string   `toml:"kek_file"`
	RotateEvery Duration `toml:"rotate_every"`
	Overlap     Duration `toml:"overlap"`
}

// TokenConfig limits access tokens.
type TokenConfig struct {
	Lifetime Duration `toml:"lifetime"` // 1m to 24h
}

// CommandConfig limits commands.
type CommandConfig struct {
	TTL      Duration `toml:"ttl"` // 1s to 24h, whole seconds
	MaxBytes int      `toml:"max_bytes"`
	// Retain is how long a command is stored after its end, with what was handed over and its receipt; 0: forever.
	Retain Duration `toml:"retain"`
}

// PairingConfig sets how long a pairing request waits for an operator, and how often the device
// polls.
type PairingConfig struct {
	Lifetime Duration `toml:"lifetime"` // 1m to 1h, whole seconds
	Interval Duration `toml:"interval"` // 1ms to 60s
}

// LimitsConfig limits what clients may use.
type LimitsConfig struct {
	Connections   int `toml:"connections"`
	PerAddress    int `toml:"per_address"`
	TokenRate     int `toml:"token_rate"`   // token requests a second from one address
	PublishRate   int `toml:"publish_rate"` // publishes and events a second of one subject, over all its connections
	ControlRate   int `toml:"control_rate"` // other MQTT requests a second of one subject: a filter or a receipt counts 1, a credential or a reported state 10
	RequestRate   int `toml:"request_rate"` // HTTP requests a second of one subject, in each rate class
	IssueRate     int `toml:"issue_rate"`   // access tokens a second for one subject, over HTTP and MQTT
	PacketBytes   int `toml:"packet_bytes"`
	QueueMessages int `toml:"queue_messages"`
	QueueBytes    int `toml:"queue_bytes"`

	// Commands not in a final state: of all orderers, and of one ordering subject.
	Commands        int `toml:"commands"`
	SubjectCommands int `toml:"subject_commands"`

	Sessions            int      `toml:"sessions"`              // persistent MQTT sessions
	SessionExpiry       Duration `toml:"session_expiry"`        // longest Session Expiry Interval; whole seconds
	OfflineBytes        int      `toml:"offline_bytes"`         // bytes of messages stored for persistent sessions, in all
	SubjectOfflineBytes int      `toml:"subject_offline_bytes"` // of the sessions of one subject
	RetainedMessages    int      `toml:"retained_messages"`     // topics with a retained message
	RetainedBytes       int      `toml:"retained_bytes"`        // memory of all retained messages
	WillBytes           int      `toml:"will_bytes"`            // bytes of all wills
	SubjectWillBytes    int      `toml:"subject_will_bytes"`    // of the wills of one subject
	// Bytes queued for connected clients: of all, and of one subject.
	QueuedBytes       int `toml:"queued_bytes"`
	SubjectQueueBytes int `toml:"subject_queue_bytes"`
	// Bytes of HTTP request bodies and of answers that are not read yet: in all, and of one subject
	// (without a token: of one network).
	BodyBytes        int `toml:"body_bytes"`
	SubjectBodyBytes int `toml:"subject_body_bytes"`
	// Bytes of topic aliases and of packet identifiers of QoS 2: of all connections and sessions,
	// and of one subject.
	ConnectionBytes        int `toml:"connection_bytes"`
	SubjectConnectionBytes int `toml:"subject_connection_bytes"`
	// Bytes of memory of subscriptions: in all, and of one subject.
	SubscriptionBytes        int `toml:"subscription_bytes"`
	SubjectSubscriptionBytes int `toml:"subject_subscription_bytes"`
	// Retained messages of one subject: their number, and bytes of memory.
	SubjectRetainedMessages int `toml:"subject_retained_messages"`
	SubjectRetainedBytes    int `toml:"subject_retained_bytes"`

	KeepAlive Duration `toml:"keep_alive"` // longest Keep Alive of MQTT 5 clients; whole seconds
}

// AuditConfig sets how the log is signed.
type AuditConfig struct {
	CheckpointEvery Duration `toml:"checkpoint_every"`
	Witnesses       []string `toml:"witnesses"`
	// RetainBodies is how long bodies of entries are stored; 0: forever. Hashes and the history of keys are never deleted.
	RetainBodies Duration `toml:"retain"`
	// Quorum is how many witnesses must have cosigned a checkpoint before devices act on it; 0: a
	// majority.
	Quorum int `toml:"quorum"`
}

// LogConfig sets the process log: level debug, info, warn or error, or empty for info, and on a terminal warn; format text or json; the absolute path of the file, or empty
// for standard error.
type LogConfig struct {
	Level  string `toml:"level"`
	Format string `toml:"format"`
	File   string `toml:"file"`
}

// MetricsConfig sets the address of the metrics listener, and the token that a client must have. Beyond loopback the token is required,
// and the listener has TLS with the certificate of the server.
type MetricsConfig struct {
	Listen    string `toml:"listen"`
	Token     string `toml:"token" secret:"true"` // 32 to 1024 bytes, printable ASCII without spaces; empty: none, on loopback only
	TokenFile string `toml:"token_file"`
}

// BackupConfig sets who can open backups, and the schedule of those that the server makes by itself.
type BackupConfig struct {
	Recipients []string `toml:"recipients"` // public keys of age
	Every      Duration `toml:"every"`      // 10m to a year; 0: none is made by schedule
	Keep       int      `toml:"keep"`       // how many of those are kept, 2 to 1000
	Dir        string   `toml:"dir"`        // folder of those
	Journal    string   `toml:"journal"`    // folder of the journals; empty: none is written
}

// Duration is a time.Duration that is written as in "90s".
type Duration struct{ time.Duration }

// UnmarshalText parses a duration such as "1m30s".
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return watchword.Refuse(watchword.ConfigInvalid, `must be a duration such as "90s" or "10m"`)
	}
	d.Duration = v
	return nil
}

// MarshalText writes a duration as "1m30s".
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Defaults returns the configuration that is used without a file.
func Defaults() Config {
	return Config{
		Server:  ServerConfig{HTTPS: "localhost:8443", MQTTS: "localhost:8883", TLSMin: "1.3", AcmeDirectory: letsEncrypt},
		Store:   StoreConfig{URL: "sqlite"},
		Keys:    KeysConfig{RotateEvery: Duration{720 * time.Hour}, Overlap: Duration{48 * time.Hour}},
		Token:   TokenConfig{Lifetime: Duration{10 * time.Minute}},
		Command: CommandConfig{TTL: Duration{2 * time.Minute}, MaxBytes: watchword.MaxArgs, Retain: Duration{30 * 24 * time.Hour}},
		Pairing: PairingConfig{Lifetime: Duration{enroll.DefaultPairingLifetime}, Interval: Duration{enroll.DefaultPairingInterval}},
		Limits: LimitsConfig{
			Connections: 10_000, PerAddress: 5_000, TokenRate: 500, PublishRate: 1_000, ControlRate: 200, RequestRate: 2_000, IssueRate: 20, PacketBytes: 64 << 10, QueueMessages: 10_000, QueueBytes: 1 << 20,
			Commands: 1_000_000, SubjectCommands: 50_000,
			Sessions: 100_000, SessionExpiry: Duration{7 * 24 * time.Hour}, OfflineBytes: 1 << 30, SubjectOfflineBytes: 4 << 20, RetainedMessages: 1_000_000, RetainedBytes: 256 << 20,
			WillBytes: 64 << 20, SubjectWillBytes: 256 << 10,
			QueuedBytes: 1 << 30, SubjectQueueBytes: 4 << 20,
			BodyBytes: 1 << 30, SubjectBodyBytes: 8 << 20,
			ConnectionBytes: 256 << 20, SubjectConnectionBytes: 256 << 10,
			SubscriptionBytes: 256 << 20, SubjectSubscriptionBytes: 2 << 20,
			SubjectRetainedMessages: 5_000, SubjectRetainedBytes: 1 << 20,
			KeepAlive: Duration{30 * time.Minute},
		},
		Audit:   AuditConfig{CheckpointEvery: Duration{time.Second}},
		Log:     LogConfig{Format: "text"},
		Metrics: MetricsConfig{Listen: "127.0.0.1:9464"},
		Backup:  BackupConfig{Keep: 7},
	}
}

func configError(key, format string, a ...any) error {
	return &watchword.Error{Code: watchword.ConfigInvalid, Field: key, Detail: fmt.Sprintf(format, a...)}
}

// Check refuses invalid or inconsistent values and names the key. Code: config_invalid.
func (c Config) Check() error {
	if c.Data == "" {
		return watchword.Refuse(watchword.ConfigInvalid, "a data folder is required: --data DIR or WATCHWORD_DATA")
	}
	for _, check := range []func() error{c.checkListeners, c.Server.checkACME, c.checkTimes, c.checkNumbers, c.checkLog, c.checkBackup} {
		if err := check(); err != nil {
			return err
		}
	}
	if c.Store.URL != "sqlite" {
		return configError("store.url", `must be "sqlite"; other stores are not in this version`)
	}
	return nil
}

func (c Config) checkListeners() error {
	s := c.Server
	if (s.TLSCert == "") != (s.TLSKey == "") {
		return configError("server.tls_cert", "must be given together with server.tls_key")
	}
	if s.TLSMin != "1.2" && s.TLSMin != "1.3" {
		return configError("server.tls_min", `must be "1.3" or "1.2"`)
	}
	for _, k := range []struct {
		key      string
		networks []string
	}{{"server.proxy_protocol", s.ProxyProtocol}, {"server.trusted_proxies", s.TrustedProxies}} {
		if _, ok := parseNetworks(k.networks); !ok {
			return configError(k.key, `must be addresses or prefixes, such as "10.0.0.0/8"`)
		}
	}
	if s.ProxyCertificate && s.PublicURL == "" {
		return configError("server.proxy_certificate", "needs server.public_url: the address at which clients reach the proxy")
	}
	if s.ProxyCertificate && (s.TLSCert != "" || len(s.AcmeDomain) > 0) {
		return configError("server.proxy_certificate", "cannot be set together with server.tls_cert or server.acme_domain: the proxy has the public certificate, and verifies the server by its own authority")
	}
	if err := s.checkAddresses(); err != nil {
		return err
	}
	if t := c.Metrics.Token; t != "" && (len(t) < 32 || len(t) > 1024 || strings.ContainsFunc(t, func(r rune) bool { return r <= ' ' || r > '~' })) {
		return configError("metrics.token", "must be 32 to 1024 bytes of printable ASCII without spaces")
	}
	for _, d := range []struct{ key, address string }{{"server.https", s.HTTPS}, {"server.mqtts", s.MQTTS}, {"server.mqtt", s.MQTT}, {"metrics.listen", c.Metrics.Listen}} {
		if d.address == "" && d.key != "server.https" {
			continue
		}
		loopback, err := loopbackAddress(d.address)
		switch {
		case err != nil:
			return configError(d.key, `must be "HOST:PORT"`)
		case loopback:
		case d.key == "metrics.listen":
			if c.Metrics.Token == "" {
				return configError(d.key, "must be a loopback address unless metrics.token_file is set")
			}
		case d.key == "server.mqtt":
			return configError(d.key, "must be a loopback address, since MQTT without TLS is not allowed elsewhere; use server.mqtts")
		case len(s.names()) == 0 && s.TLSCert == "":
			return configError(d.key, `must be a loopback address unless server.names = ["hub.local", …], server.public_url or server.tls_cert is set`)
		}
	}
	return nil
}

// publicCertificate reports whether clients see a certificate of the public Web PKI.
func (s ServerConfig) publicCertificate() bool {
	return s.TLSCert != "" || len(s.AcmeDomain) > 0 || s.ProxyCertificate
}

// loopbackAddress reports whether HOST:PORT is a loopback address.
func loopbackAddress(a string) (bool, error) {
	host, port, err := net.SplitHostPort(a)
	if err != nil {
		return false, err
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return false, err
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback(), nil
}

func (c Config) checkTimes() error {
	for _, d := range []struct {
		key      string
		value    Duration
		min, max time.Duration
	}{
		{"token.lifetime", c.Token.Lifetime, time.Minute, 24 * time.Hour},
		{"command.ttl", c.Command.TTL, time.Second, 24 * time.Hour},
		{"pairing.lifetime", c.Pairing.Lifetime, time.Minute, time.Hour},
		{"pairing.interval", c.Pairing.Interval, time.Millisecond, time.Minute},
		{"keys.rotate_every", c.Keys.RotateEvery, 0, 10 * 365 * 24 * time.Hour},
		{"keys.overlap", c.Keys.Overlap, time.Hour, 365 * 24 * time.Hour},
		{"audit.checkpoint_every", c.Audit.CheckpointEvery, 100 * time.Millisecond, time.Hour},
		{"limits.session_expiry", c.Limits.SessionExpiry, time.Second, 365 * 24 * time.Hour},
		{"limits.keep_alive", c.Limits.KeepAlive, 5 * time.Second, 65535 * time.Second},
	} {
		if v := d.value.Duration; v < d.min || v > d.max {
			return configError(d.key, "must be from %s to %s", d.min, d.max)
		}
	}
	if r := c.Command.Retain.Duration; r != 0 && (r < 48*time.Hour || r > 100*365*24*time.Hour) { // idempotency keys refer to commands for 48 hours
		return configError("command.retain", "must be from 48h to 100 years, or 0s for unlimited")
	}
	if every := c.Keys.RotateEvery.Duration; every > 0 && every <= c.Keys.Overlap.Duration {
		return configError("keys.rotate_every", "must be longer than keys.overlap, or 0s for rotation by hand only")
	}
	for _, d := range []struct {
		key   string
		value time.Duration
	}{{"command.ttl", c.Command.TTL.Duration}, {"limits.session_expiry", c.Limits.SessionExpiry.Duration}, {"limits.keep_alive", c.Limits.KeepAlive.Duration}} {
		if d.value%time.Second != 0 {
			return configError(d.key, "must be whole seconds")
		}
	}
	if c.Pairing.Lifetime.Duration%time.Second != 0 {
		return configError("pairing.lifetime", "must be whole seconds")
	}
	return nil
}

func (c Config) checkNumbers() error {
	for _, n := range []struct {
		key      string
		value    int
		min, max int64 // some maxima exceed 32 bits
	}{
		{"command.max_bytes", c.Command.MaxBytes, 64, watchword.MaxArgs},
		{"limits.connections", c.Limits.Connections, 1, 1 << 20},
		{"limits.per_address", c.Limits.PerAddress, 1, 1 << 20},
		{"limits.token_rate", c.Limits.TokenRate, 1, 1 << 20},
		{"limits.publish_rate", c.Limits.PublishRate, 1, 1 << 20},
		{"limits.control_rate", c.Limits.ControlRate, 10, 1 << 20},
		{"limits.request_rate", c.Limits.RequestRate, 1, 1 << 20},
		{"limits.issue_rate", c.Limits.IssueRate, 1, 1 << 20},
		{"limits.packet_bytes", c.Limits.PacketBytes, 1 << 10, 1 << 20},
		{"limits.queue_messages", c.Limits.QueueMessages, 1, 1 << 20},
		{"limits.queue_bytes", c.Limits.QueueBytes, 1 << 10, 1 << 30},
		{"limits.commands", c.Limits.Commands, 1, 1 << 30},
		{"limits.subject_commands", c.Limits.SubjectCommands, 1, 1 << 30},
		{"limits.sessions", c.Limits.Sessions, 1, 1 << 24},
		{"limits.offline_bytes", c.Limits.OfflineBytes, 1 << 20, 1 << 42},
		{"limits.subject_offline_bytes", c.Limits.SubjectOfflineBytes, 1 << 16, 1 << 42},
		{"limits.retained_messages", c.Limits.RetainedMessages, 1, 1 << 24},
		{"limits.retained_bytes", c.Limits.RetainedBytes, 1 << 10, 1 << 40},
		{"limits.queued_bytes", c.Limits.QueuedBytes, 1 << 16, 1 << 40},
		{"limits.subject_queue_bytes", c.Limits.SubjectQueueBytes, 1 << 16, 1 << 40},
		{"limits.body_bytes", c.Limits.BodyBytes, 1 << 20, 1 << 40},
		{"limits.subject_body_bytes", c.Limits.SubjectBodyBytes, 1 << 20, 1 << 40},
		{"limits.connection_bytes", c.Limits.ConnectionBytes, 1 << 10, 1 << 40},
		{"limits.subject_connection_bytes", c.Limits.SubjectConnectionBytes, 1 << 10, 1 << 40},
		{"limits.subscription_bytes", c.Limits.SubscriptionBytes, 1 << 10, 1 << 40},
		{"limits.subject_subscription_bytes", c.Limits.SubjectSubscriptionBytes, 1 << 10, 1 << 40},
		{"limits.will_bytes", c.Limits.WillBytes, 1 << 10, 1 << 40},
		{"limits.subject_will_bytes", c.Limits.SubjectWillBytes, 1 << 10, 1 << 40},
		{"limits.subject_retained_messages", c.Limits.SubjectRetainedMessages, 1, 1 << 24},
		{"limits.subject_retained_bytes", c.Limits.SubjectRetainedBytes, 1 << 10, 1 << 40},
	} {
		if v := int64(n.value); v < n.min || v > n.max {
			return configError(n.key, "must be from %d to %d", n.min, n.max)
		}
	}
	return nil
}

func (c Config) checkLog() error {
	if r := c.Audit.RetainBodies.Duration; r != 0 && (r < 24*time.Hour || r > 100*365*24*time.Hour) {
		return configError("audit.retain", "must be from 24h to 100 years, or 0s for unlimited")
	}
	if n := len(c.Audit.Witnesses); n > token.MaxWitnesses {
		return configError("audit.witnesses", "must be at most %d", token.MaxWitnesses)
	} else if c.Audit.Quorum < 0 || c.Audit.Quorum > n {
		return configError("audit.quorum", "must be from 0 to %d, as many as there are witnesses", n)
	}
	known := map[string]bool{}
	for _, line := range c.Audit.Witnesses {
		w, err := audit.ParseWitness(line)
		if err != nil {
			return err
		}
		if known[w.Key.String()] {
			return configError("audit.witnesses", "must name %s once", w.Key.Name())
		}
		known[w.Key.String()] = true
	}
	if !slices.Contains([]string{"", "debug", "info", "warn", "error"}, c.Log.Level) {
		return configError("log.level", "must be debug, info, warn or error")
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		return configError("log.format", "must be text or json")
	}
	if f := c.Log.File; f != "" && !filepath.IsAbs(f) {
		return configError("log.file", "must be an absolute path")
	}
	return nil
}

func (c Config) checkBackup() error {
	if _, err := backup.ParseRecipients(c.Backup.Recipients); err != nil {
		detail := err.Error()
		if ours, ok := errors.AsType[*watchword.Error](err); ok {
			detail = ours.Detail
		}
		return configError("backup.recipients", "is not valid: %s", detail)
	}
	b := c.Backup
	if v := b.Every.Duration; v != 0 && (v < 10*time.Minute || v > 365*24*time.Hour) {
		return configError("backup.every", "must be from %s to %s, or 0s for no backups by schedule", 10*time.Minute, 365*24*time.Hour)
	}
	if b.Keep < 2 || b.Keep > 1000 {
		return configError("backup.keep", "must be from 2 to 1000")
	}
	if b.Every.Duration > 0 && b.Dir == "" {
		return configError("backup.dir", "is required with backup.every")
	}
	if len(b.Recipients) == 0 && (b.Every.Duration > 0 || b.Journal != "") {
		return configError("backup.recipients", "is required with backup.every and backup.journal")
	}
	for _, d := range []struct{ key, dir string }{{"backup.dir", b.Dir}, {"backup.journal", b.Journal}} {
		switch {
		case d.dir == "":
		case !filepath.IsAbs(d.dir):
			return configError(d.key, "must be an absolute path")
		case c.Data != "" && within(c.Data, d.dir):
			return configError(d.key, "must not be in the data folder, which it is to outlive")
		}
	}
	return nil
}

// within reports whether path is dir or below it, also by another name of the same folder.
func within(dir, path string) bool {
	for _, resolve := range []func(string) (string, error){func(p string) (string, error) { return p, nil }, filepath.EvalSymlinks} {
		d, derr := resolve(dir)
		p, perr := resolve(path)
		if rel, err := filepath.Rel(d, p); derr == nil && perr == nil && err == nil && filepath.IsLocal(rel) {
			return true
		}
	}
	return false
}

// absolute makes the data folder's path absolute.
func (c *Config) absolute() (err error) {
	if c.Data != "" {
		c.Data, err = filepath.Abs(c.Data)
	}
	return err
}
