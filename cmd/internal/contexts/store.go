// Package contexts keeps the servers that the command line tool of a user is logged in to: addresses, trust bundles, private
// keys and access tokens, in files that only the user may read. Names of contexts come in; options of a client of the server go
// out. It refuses files that other users could have written, and changes contexts.toml under a lock.
package contexts

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/token"
)

// Limits of the file contexts.toml.
const (
	maxContexts = 64
	maxFile     = 256 << 10 // bytes
)

// lockWait is how long a change of contexts.toml waits for that of another process.
const lockWait = 10 * time.Second

// Context is one server that the user is logged in to, as one subject. Key and Trust are paths relative to the folder of
// contexts.toml, or absolute.
type Context struct {
	Server  string              `toml:"server"` // https://host:port, without a trailing slash
	Issuer  string              `toml:"issuer"`
	Subject watchword.SubjectID `toml:"subject"`
	Pin     string              `toml:"pin"`            // of a root key that the trust bundle names
	Key     string              `toml:"key"`            // file of the private key, a JWK
	Trust   string              `toml:"trust"`          // file of the trust bundle
	Link    string              `toml:"link,omitempty"` // digest of the one-time code that the key was enrolled with
	// KeyEnds is the end of the key, as the server said last; nil for none.
	KeyEnds *time.Time `toml:"key_ends,omitempty"`
}

// File is the content of contexts.toml.
type File struct {
	Current  string             `toml:"current"`
	Contexts map[string]Context `toml:"contexts"`
}

// Names returns the names of all contexts, sorted.
func (f File) Names() []string { return slices.Sorted(maps.Keys(f.Contexts)) }

// Get returns a context. Code: not_found, with the names that exist.
func (f File) Get(name string) (Context, error) {
	c, ok := f.Contexts[name]
	if !ok {
		all := strings.Join(f.Names(), ", ")
		if all == "" {
			all = "none"
		}
		return c, watchword.Refuse(watchword.NotFound, "context %q does not exist; the contexts are: %s", name, all)
	}
	return c, nil
}

// Store is the contexts of one user. It is safe for concurrent use, by several processes too.
type Store struct {
	dir, cache string
	warn       func(error) // of errors that only cost a repetition
}

// Open returns the store in $XDG_CONFIG_HOME/watchword (~/.config/watchword), with tokens in $XDG_CACHE_HOME/watchword
// (~/.cache/watchword); on Windows in the folders for programs' data. It creates nothing. warn is called with errors of the
// cache of tokens. Code: config_invalid without a home folder.
func Open(warn func(error)) (*Store, error) {
	dir, err := folder("XDG_CONFIG_HOME", ".config", os.UserConfigDir)
	if err != nil {
		return nil, err
	}
	cache, err := folder("XDG_CACHE_HOME", ".cache", os.UserCacheDir)
	if err != nil {
		return nil, err
	}
	return &Store{dir, cache, warn}, nil
}

func folder(variable, below string, windows func() (string, error)) (string, error) {
	if dir := os.Getenv(variable); filepath.IsAbs(dir) { // others are invalid (XDG Base Directory Specification)
		return filepath.Join(dir, "watchword"), nil
	}
	home, err := os.UserHomeDir()
	if err == nil {
		_, err = os.Stat(home) // that of a system user may not exist, and is not made
	}
	if err == nil && runtime.GOOS != "windows" {
		return filepath.Join(home, below, "watchword"), nil
	}
	if err == nil {
		home, err = windows()
	}
	if err != nil {
		return "", watchword.Wrap(err, watchword.ConfigInvalid, "the home folder must exist, for contexts.toml and for tokens: set HOME or %s", variable)
	}
	return filepath.Join(home, "watchword"), nil
}

// Path returns the path of contexts.toml.
func (s *Store) Path() string { return filepath.Join(s.dir, "contexts.toml") }

// in returns the path of a file of a context.
func (s *Store) in(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(s.dir, path)
}

// Read returns all contexts; none if the file does not exist. Codes: config_invalid, file_untrusted.
func (s *Store) Read() (f File, err error) {
	b, err := durable.ReadTrusted(s.Path(), maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if watchword.CodeOf(err) == watchword.TooLarge {
		return f, watchword.Wrap(err, watchword.ConfigInvalid, "%s", err)
	}
	if err != nil {
		return f, err
	}
	if err := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(&f); err != nil {
		return File{}, watchword.Wrap(err, watchword.ConfigInvalid, "%s is not valid: %s", s.Path(), err)
	}
	for _, name := range f.Names() {
		if err := f.Contexts[name].check(name); err != nil {
			return File{}, watchword.Wrap(err, watchword.ConfigInvalid, "%s is not valid: context %q: %s", s.Path(), name, err)
		}
	}
	return f, nil
}

func (c Context) check(name string) error {
	u, err := url.Parse(c.Server)
	switch {
	case CheckName(name) != nil:
		return CheckName(name)
	case err != nil || u.Scheme != "https" || u.Host == "":
		return watchword.RefuseField("server", "must be https://HOST[:PORT]")
	case !watchword.ValidName(string(c.Subject)):
		return watchword.RefuseField("subject", "must be the ID of a subject")
	case c.Issuer == "" || c.Pin == "" || c.Key == "" || c.Trust == "":
		return watchword.RefuseField("issuer, pin, key and trust", "must not be empty")
	}
	return nil
}

// update changes contexts.toml under its lock. Codes: as [Store.Read]; folder_in_use.
func (s *Store) update(ctx context.Context, change func(*File) error) error {
	if err := durable.EnsureFolder(s.dir, false); err != nil {
		return err
	}
	lock, err := waitForLock(ctx, filepath.Join(s.dir, "contexts.lock"), lockWait)
	if err != nil {
		return err
	}
	defer lock.Close()
	f, err := s.Read()
	if err != nil {
		return err
	}
	if f.Contexts == nil {
		f.Contexts = map[string]Context{}
	}
	if err := change(&f); err != nil {
		return err
	}
	b, err := toml.Marshal(f)
	if err != nil {
		return err
	}
	return durable.WriteFile(s.Path(), b, 0o600)
}

// waitForLock locks a file, and waits for other processes. Code: folder_in_use after the time.
func waitForLock(ctx context.Context, path string, d time.Duration) (*os.File, error) {
	for end := time.Now().Add(d); ; {
		f, err := durable.Lock(path)
		if watchword.CodeOf(err) != watchword.FolderInUse || time.Now().After(end) {
			return f, err
		}
		t := time.NewTimer(20 * time.Millisecond)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		case <-t.C:
		}
	}
}

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// CheckName refuses a name that cannot be that of a context: files are named after it. Code: bad_request.
func CheckName(name string) error {
	if validName.MatchString(name) {
		return nil
	}
	return watchword.RefuseField("context", "must be 1 to 64 letters, digits, dots, dashes and underscores, and begin with a letter or digit")
}

// NameFor returns a name for the context of a server: its host, with the port unless it is 443, and the path of a tenant.
func NameFor(server string) string {
	u, err := url.Parse(server)
	if err != nil {
		return "server"
	}
	name := u.Hostname()
	if p := u.Port(); p != "" && p != "443" {
		name += "-" + p
	}
	name += strings.TrimRight(u.Path, "/")
	name = regexp.MustCompile(`[^A-Za-z0-9._-]+`).ReplaceAllString(name, "-")
	if name = strings.TrimLeft(name, ".-_"); name == "" {
		return "server"
	}
	return name[:min(len(name), 64)]
}

// EnsureKey returns the key in a file of the store, and makes one on P-256 if there is none. tag tells the keys of several
// attempts to log in apart: the same tag gives the same key, so that an attempt can be repeated after a crash. made reports that
// this call made the key: no server has seen it. file is what [Context] calls Key. Codes: key_exposed, file_untrusted; bad_request for a file that is no key.
func (s *Store) EnsureKey(name, tag string) (k *jose.PrivateKey, file string, made bool, err error) {
	if err := CheckName(name); err != nil {
		return nil, "", false, err
	}
	file = filepath.Join("keys", name+"."+tag+".jwk")
	if k, err = s.readKey(file); !errors.Is(err, fs.ErrNotExist) {
		return k, file, false, err
	}
	if err := durable.EnsureFolder(s.in("keys"), true); err != nil {
		return nil, "", false, err
	}
	if k, err = jose.GenerateKey(jose.P256); err != nil {
		return nil, "", false, err
	}
	err = durable.Create(s.in(file), append(k.JWK(), '\n'), 0o600)
	if errors.Is(err, fs.ErrExist) { // another process was quicker
		k, err = s.readKey(file)
		return k, file, false, err
	}
	return k, file, err == nil, err
}

func (s *Store) readKey(file string) (*jose.PrivateKey, error) { return ReadKey(s.in(file)) }

// ReadKey reads a private signing key. Codes: key_exposed, file_untrusted; bad_request for a file that is no key; otherwise the
// error of the system, such as [fs.ErrNotExist].
func ReadKey(path string) (*jose.PrivateKey, error) {
	b, err := durable.ReadPrivate(path)
	if err != nil {
		return nil, err
	}
	return jose.ParsePrivateJWK(b, jose.ForSigning)
}

// KeyPath returns the path of a key's file. file is that of [Store.EnsureKey].
func (s *Store) KeyPath(file string) string { return s.in(file) }

// ForgetKey removes a key that [Store.EnsureKey] made and that was not enrolled.
func (s *Store) ForgetKey(file string) error { return remove(s.in(file)) }

func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// CheckFree refuses a name that another login has: the context of the same link is no other. same reports that. Codes: conflict,
// bad_request.
func (s *Store) CheckFree(name, link string) (same bool, err error) {
	if err := CheckName(name); err != nil {
		return false, err
	}
	f, err := s.Read()
	if err != nil {
		return false, err
	}
	return f.checkFree(name, link)
}

func (f File) checkFree(name, link string) (same bool, err error) {
	c, taken := f.Contexts[name]
	other := ""
	for _, n := range f.Names() {
		if n != name && strings.EqualFold(n, name) {
			other = n
		}
	}
	switch {
	case taken && link != "" && c.Link == link:
		return true, nil
	case other != "":
		return false, watchword.Refuse(watchword.Conflict, "context %q exists, and its files would have the name of %q where a file system does not distinguish capital letters: give another name with --context", other, name)
	case taken:
		return false, watchword.Refuse(watchword.Conflict, "context %q exists already, for %s at %s: give another name with --context, or remove it with watchword logout --context %s", name, c.Subject, c.Server, name)
	case len(f.Contexts) >= maxContexts:
		return false, watchword.Refuse(watchword.Conflict, "there are %d contexts, the limit: remove one with watchword context delete", maxContexts)
	}
	return false, nil
}

// Add stores the context of a login, and makes it the current one. keyFile is that of [Store.EnsureKey], link a digest of the
// link, or empty. Codes: conflict, bad_request.
func (s *Store) Add(ctx context.Context, name string, o admin.Options, keyFile, link string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if err := durable.EnsureFolder(s.in("trust"), true); err != nil {
		return err
	}
	return s.update(ctx, func(f *File) error {
		if same, err := f.checkFree(name, link); err != nil || same {
			return err
		}
		c := Context{Server: o.URL, Issuer: o.Issuer, Subject: o.Subject, Pin: o.Pin, Key: keyFile, Trust: filepath.Join("trust", name+".jws"), Link: link}
		if err := c.check(name); err != nil {
			return err
		}
		if err := durable.WriteFile(s.in(c.Trust), []byte(o.Bundle), 0o600); err != nil {
			return err
		}
		f.Contexts[name], f.Current = c, name
		return nil
	})
}

// SetKeyEnds stores the end of a context's key; nil for none. It writes nothing if that is known. Code: not_found.
func (s *Store) SetKeyEnds(ctx context.Context, name string, ends *time.Time) error {
	f, err := s.Read()
	if err != nil {
		return err
	}
	if known := f.Contexts[name].KeyEnds; known == ends || known != nil && ends != nil && known.Equal(*ends) {
		_, err := f.Get(name)
		return err
	}
	return s.update(ctx, func(f *File) error {
		c, err := f.Get(name)
		c.KeyEnds = ends
		f.Contexts[name] = c
		return err
	})
}

// Use makes a context the current one. Code: not_found.
func (s *Store) Use(ctx context.Context, name string) error {
	return s.update(ctx, func(f *File) error {
		_, err := f.Get(name)
		f.Current = name
		return err
	})
}

// Delete removes a context, with its key, its trust bundle and its token. A key or bundle outside of the folder of
// contexts.toml stays. Code: not_found.
func (s *Store) Delete(ctx context.Context, name string) error {
	return s.update(ctx, func(f *File) error {
		c, err := f.Get(name)
		if err != nil {
			return err
		}
		if k, err := s.readKey(c.Key); err == nil {
			s.forgetToken(c.Issuer, c.Subject, k.Public().ID())
		}
		for _, file := range []string{c.Key, c.Trust} {
			if filepath.IsLocal(file) {
				if err := remove(s.in(file)); err != nil {
					return err
				}
			}
		}
		delete(f.Contexts, name)
		if f.Current == name {
			f.Current = ""
		}
		return nil
	})
}

// Options returns the options of a client of a context's server. Codes: not_found, key_exposed, file_untrusted, config_invalid.
func (s *Store) Options(name string) (o admin.Options, err error) {
	f, err := s.Read()
	if err != nil {
		return o, err
	}
	c, err := f.Get(name)
	if err != nil {
		return o, err
	}
	o = admin.Options{URL: c.Server, Issuer: c.Issuer, Subject: c.Subject, Pin: c.Pin, SaveServer: func(now admin.Server) { s.saveServer(name, now) }}
	bundle, err := durable.ReadTrusted(s.in(c.Trust), 2*watchword.MaxBundle)
	if err == nil {
		o.Bundle = string(bundle)
		o.Key, err = s.readKey(c.Key)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = watchword.Wrap(err, watchword.ConfigInvalid, "a file of context %q is missing: %s; remove the context with watchword context delete %s, and log in again", name, err, name)
	}
	if err != nil {
		return o, err
	}
	if info, err := os.Stat(s.in(c.Trust)); err == nil {
		o.BundleAt = info.ModTime()
	}
	return o, nil
}

// saveServer stores the current bundle of a context's server, and after it the pin of its newest root and its address: the bundle
// on the disk names the old ones too. Another process may have stored a newer one meanwhile: then it changes nothing.
func (s *Store) saveServer(name string, now admin.Server) {
	err := s.update(context.Background(), func(f *File) error {
		c, err := f.Get(name)
		if err != nil {
			return err
		}
		if newer, err := s.hasNewerBundle(c, now.Bundle); newer || err != nil {
			return err
		}
		if err := durable.WriteFile(s.in(c.Trust), []byte(now.Bundle), 0o600); err != nil {
			return err
		}
		c.Server, c.Issuer, c.Pin = now.URL, now.Issuer, now.Pin
		if err := c.check(name); err != nil {
			return err
		}
		f.Contexts[name] = c
		return nil
	})
	if err != nil {
		s.warn(watchword.Wrap(err, watchword.CodeOf(err), "the server's trust bundle cannot be stored: %s", err))
	}
}

// hasNewerBundle reports whether the stored trust bundle of a context is newer than another one. A stored one that cannot be read
// is older.
func (s *Store) hasNewerBundle(c Context, other string) (bool, error) {
	b, err := durable.ReadTrusted(s.in(c.Trust), 2*watchword.MaxBundle)
	if err != nil {
		return false, nil
	}
	stored, err := token.ReadTrust(string(b))
	if err != nil {
		return false, nil
	}
	t, err := token.ReadTrust(other)
	return err == nil && stored.BundleVersion().NewerThan(t.BundleVersion()), err
}
