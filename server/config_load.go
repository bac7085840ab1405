package server

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/spelling"
	"github.com/watchword-iot/watchword/server/internal/tomlpos"
)

// Source says where [Load] reads the configuration from.
type Source struct {
	File string                          // --config; empty means the default places, where the file may be missing
	Data string                          // --data; empty means WATCHWORD_DATA
	Env  func(key string) (string, bool) // nil means os.LookupEnv

	Environ []string // all variables as NAME=VALUE, to find misspelt ones; nil means os.Environ
}

// maxConfig is the longest configuration file, in bytes.
const maxConfig = 1 << 20

// Load reads the configuration: the defaults, the file, then WATCHWORD_<SECTION>_<KEY>. It returns
// the path of the file, empty if none was read. Codes: config_invalid, with file, line and column,
// or the variable, also an unknown one whose name begins with WATCHWORD_; key_exposed for a file with a secret; file_untrusted.
func Load(src Source) (c Config, file string, err error) {
	if src.Env == nil {
		src.Env = os.LookupEnv
	}
	c = Defaults()
	if err := CheckVariables(src.Environ); err != nil {
		return c, "", err
	}
	file, text, err := findConfig(src)
	if err != nil {
		return c, file, err
	}
	if c.Text = text; text != nil {
		if err := decode(file, text, &c); err != nil {
			return c, file, err
		}
	}
	if err := overlayEnvironment(&c, src.Env); err != nil {
		return c, file, err
	}
	if c.Data = src.Data; c.Data == "" {
		c.Data, _ = src.Env("WATCHWORD_DATA")
	}
	if err := c.absolute(); err != nil {
		return c, file, err
	}
	return c, file, readSecrets(&c, src.Env)
}

func findConfig(src Source) (path string, text []byte, err error) {
	paths := []string{src.File}
	if src.File == "" {
		paths = []string{"/etc/watchword/watchword.toml"}
		if dir, ok := src.Env("XDG_CONFIG_HOME"); ok && dir != "" {
			paths = append(paths, filepath.Join(dir, "watchword", "watchword.toml"))
		}
	}
	for _, p := range paths {
		if src.File == "" && !exists(p) { // the default file does not exist
			continue
		}
		text, err := durable.ReadTrusted(p, maxConfig)
		switch {
		case err == nil:
			return p, append([]byte{}, text...), nil // not nil, also for an empty file
		case watchword.CodeOf(err) == watchword.FileUntrusted:
			return p, nil, err
		case watchword.CodeOf(err) == watchword.TooLarge:
			return p, nil, watchword.Wrap(err, watchword.ConfigInvalid, "%s", err)
		}
		return p, nil, watchword.Wrap(err, watchword.ConfigInvalid, "%s cannot be read", p)
	}
	return "", nil, nil
}

// renamedKeys maps the old names of renamed keys to the new ones. Each is in CHANGELOG.md under "Renamed".
var renamedKeys = map[string]string{
	"limits.kept_bytes":         "limits.offline_bytes",
	"limits.subject_kept_bytes": "limits.subject_offline_bytes",
}

// absentKeys is the keys of features that are not in this version. They are refused, so that no operator relies on them.
// When a feature is added, its keys move from here into [Config].
var absentKeys = []string{
	"server.console",
	"cluster.node", "cluster.routes", "cluster.listen", "cluster.secret", "cluster.secret_file",
	"token.skew",
	"auth.oidc_issuer", "auth.oidc_client_id", "auth.oidc_client_secret", "auth.oidc_client_secret_file", "auth.session_lifetime",
}

// isAbsent reports whether key, which is not in [Config], is one of absentKeys or a section of such keys alone.
func isAbsent(key string) bool {
	return slices.ContainsFunc(absentKeys, func(k string) bool {
		section, _, _ := strings.Cut(k, ".")
		return key == k || key == section
	})
}

func decode(file string, text []byte, c *Config) error {
	d := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	err := d.Decode(c)
	if err == nil {
		return nil
	}
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		e := strict.Errors[0]
		line, column := e.Position()
		key := strings.Join(e.Key(), ".")
		for path, at := range tomlpos.Locate(text) { // the decoder leaves out the section of an inline table
			if at == [2]int{line, column} && strings.HasSuffix(path, "."+key) {
				key = path
			}
		}
		if isAbsent(key) {
			return watchword.Refuse(watchword.ConfigInvalid, "%s:%d:%d: %s is not in this version: remove it", file, line, column, key)
		}
		hint := ""
		if now := renamedKeys[key]; now != "" {
			hint = fmt.Sprintf("; it was renamed to %s", now)
		} else if near := nearestKey(key); near != "" {
			hint = fmt.Sprintf("; did you mean %s?", near)
		}
		return watchword.Refuse(watchword.ConfigInvalid, "%s:%d:%d: unknown key %s%s", file, line, column, key, hint)
	}
	if e, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, column := e.Position()
		what := strings.TrimPrefix(e.Error(), "toml: ")
		if ours, ok := errors.AsType[*watchword.Error](err); ok {
			what = ours.Detail
		}
		return watchword.Refuse(watchword.ConfigInvalid, "%s:%d:%d: %s", file, line, column, what)
	}
	detail := err.Error()
	if ours, ok := errors.AsType[*watchword.Error](err); ok {
		detail = ours.Detail
	}
	return watchword.Wrap(err, watchword.ConfigInvalid, "%s%s", durationPosition(file, text, c), detail)
}

// durationPosition returns the position of the first invalid duration; the error of the decoder has
// none.
func durationPosition(file string, text []byte, c *Config) string {
	var tree map[string]map[string]any
	if err := toml.Unmarshal(text, &tree); err != nil {
		return file + ": "
	}
	at := tomlpos.Locate(text)
	out := file + ": "
	_ = eachKey(c, func(section, key string, v reflect.Value, _ bool) error { // the error only stops the walk
		value, set := tree[section][key]
		if _, isText := value.(string); !set || isText || v.Type() != reflect.TypeFor[Duration]() {
			return nil
		}
		p := at[section+"."+key]
		out = fmt.Sprintf("%s:%d:%d: %s.%s: ", file, p[0], p[1], section, key)
		return errFound
	})
	return out
}

var errFound = errors.New("found")

// eachKey calls see with each key of the configuration, in the form "server.https".
func eachKey(c *Config, see func(section, key string, v reflect.Value, secret bool) error) error {
	root := reflect.ValueOf(c).Elem()
	for i := range root.NumField() {
		section := root.Type().Field(i).Tag.Get("toml")
		if section == "-" {
			continue
		}
		s := root.Field(i)
		for j := range s.NumField() {
			f := s.Type().Field(j)
			if err := see(section, f.Tag.Get("toml"), s.Field(j), f.Tag.Get("secret") == "true"); err != nil {
				return err
			}
		}
	}
	return nil
}

// variable returns the environment variable of a key as "server.https".
func variable(key string) string {
	return "WATCHWORD_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

func overlayEnvironment(c *Config, env func(string) (string, bool)) error {
	for _, key := range absentKeys { // of env, which need not be the environment that was checked
		if _, set := env(variable(key)); set {
			return watchword.Refuse(watchword.ConfigInvalid, "%s: %s is not in this version: remove the variable", variable(key), key)
		}
	}
	return eachKey(c, func(section, key string, v reflect.Value, _ bool) error {
		name := variable(section + "." + key)
		text, ok := env(name)
		if !ok {
			return nil
		}
		switch p := v.Addr().Interface().(type) {
		case *string:
			*p = text
		case *[]string:
			*p = nil
			for part := range strings.SplitSeq(text, ",") {
				if part = strings.TrimSpace(part); part != "" {
					*p = append(*p, part)
				}
			}
		case *int:
			n, err := strconv.Atoi(text)
			if err != nil {
				return watchword.Refuse(watchword.ConfigInvalid, "%s must be a whole number", name)
			}
			*p = n
		case *Duration:
			if err := p.UnmarshalText([]byte(text)); err != nil {
				return watchword.Refuse(watchword.ConfigInvalid, `%s must be a duration such as "90s"`, name)
			}
		case *bool:
			b, err := strconv.ParseBool(text)
			if err != nil {
				return watchword.Refuse(watchword.ConfigInvalid, "%s must be true or false", name)
			}
			*p = b
		default: // a key of a new type
			return watchword.Refuse(watchword.Internal, "%s cannot be set by a variable", name)
		}
		return nil
	})
}

// readSecrets reads the file named by each x_file key into key x. A bare name is looked up in
// $CREDENTIALS_DIRECTORY first.
func readSecrets(c *Config, env func(string) (string, bool)) error {
	credentials, _ := env("CREDENTIALS_DIRECTORY")
	resolve := func(name string) string {
		if credentials == "" || name == "" || strings.ContainsRune(name, filepath.Separator) {
			return name
		}
		if p := filepath.Join(credentials, name); exists(p) {
			return p
		}
		return name
	}
	c.Keys.KEKFile = resolve(c.Keys.KEKFile)
	for _, s := range []struct {
		key, file string
		into      *string
	}{
		{"store.url_file", c.Store.URLFile, &c.Store.URL},
		{"server.acme_eab_key_file", c.Server.AcmeEABKeyFile, &c.Server.AcmeEABKey},
		{"metrics.token_file", c.Metrics.TokenFile, &c.Metrics.Token},
	} {
		if s.file == "" {
			continue
		}
		b, err := durable.ReadPrivate(resolve(s.file))
		if c := watchword.CodeOf(err); c == watchword.KeyExposed || c == watchword.FileUntrusted {
			return err
		} else if err != nil {
			return watchword.Wrap(err, watchword.ConfigInvalid, "%s: the file cannot be read", s.key)
		}
		*s.into = strings.TrimRight(string(b), "\r\n")
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Print returns the configuration as TOML, with secrets masked.
func (c Config) Print() ([]byte, error) {
	err := eachKey(&c, func(_, _ string, v reflect.Value, secret bool) error {
		if s := v.String(); secret && s != "" && s != "sqlite" {
			v.SetString("[secret]")
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	b, err := toml.Marshal(c)
	return append([]byte(fmt.Sprintf("# data folder: %s\n# public url: %s\n", c.Data, c.PublicURL())), b...), err
}

// nearestKey returns the known key with the smallest edit distance to key, if it is near; ""
// otherwise.
func nearestKey(key string) string {
	var known []string
	c := Defaults()
	_ = eachKey(&c, func(section, k string, _ reflect.Value, _ bool) error { // the callback returns no error
		known = append(known, section+"."+k, section)
		return nil
	})
	return spelling.Nearest(key, slices.Compact(known), 3)
}
