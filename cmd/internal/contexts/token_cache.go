package contexts

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/sdk/admin"
)

// Limits of the cache of tokens. A token lives at most a day.
const (
	maxTokens     = 64 // files of tokens
	maxTokenAge   = 24 * time.Hour
	tokenLockWait = 5 * time.Second // how long a process waits for another one that requests a token
)

// tokenFile is the cached token of one key of one subject of one issuer. It implements [rest.TokenCache]. The token is bound to
// the key, so the file alone is of no use.
type tokenFile struct {
	s    *Store
	path string
}

// TokenCache returns the cache of the tokens of a client.
func (s *Store) TokenCache(o admin.Options) admin.TokenCache {
	return tokenFile{s, s.tokenPath(o.Issuer, o.Subject, o.Key.Public().ID())}
}

func (s *Store) tokenPath(issuer string, subject watchword.SubjectID, key watchword.KeyID) string {
	sum := sha256.Sum256([]byte(issuer + "\n" + string(subject) + "\n" + string(key)))
	return filepath.Join(s.cache, "tokens", base64.RawURLEncoding.EncodeToString(sum[:])+".json")
}

// forgetToken removes the token of a key.
func (s *Store) forgetToken(issuer string, subject watchword.SubjectID, key watchword.KeyID) {
	s.report("removed", remove(s.tokenPath(issuer, subject, key)))
}

func (s *Store) report(done string, err error) {
	if err != nil {
		s.warn(watchword.Wrap(err, watchword.CodeOf(err), "the cached access token cannot be %s: %s", done, err))
	}
}

// Load returns the token of the file. A file that is no token counts as none.
func (f tokenFile) Load() (c rest.CachedToken) {
	b, err := durable.ReadPrivate(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return c
	}
	if err != nil {
		f.s.report("read", err)
		return c
	}
	if json.Unmarshal(b, &c) != nil {
		return rest.CachedToken{}
	}
	return c
}

// Save replaces the token, and removes the files of tokens that have expired, and the oldest of too many.
func (f tokenFile) Save(c rest.CachedToken) {
	b, err := json.Marshal(c)
	if err == nil {
		err = durable.EnsureFolder(filepath.Dir(f.path), true)
	}
	if err == nil {
		err = durable.WriteFile(f.path, b, 0o600)
	}
	if err == nil {
		err = f.prune()
	}
	f.s.report("stored", err)
}

// prune removes the tokens that are older than a day, and the oldest beyond the limit.
func (f tokenFile) prune() error {
	files, err := filepath.Glob(filepath.Join(filepath.Dir(f.path), "*.json"))
	if err != nil {
		return err
	}
	type aged struct {
		path string
		at   time.Time
	}
	var all []aged
	for _, path := range files {
		if info, err := os.Stat(path); err == nil && path != f.path { // another process may have removed it
			all = append(all, aged{path, info.ModTime()})
		}
	}
	slices.SortFunc(all, func(a, b aged) int { return b.at.Compare(a.at) })
	for i, one := range all {
		if age := time.Since(one.at); i+1 < maxTokens && age < maxTokenAge && age > -maxTokenAge {
			continue
		}
		if err := remove(one.path); err != nil {
			return err
		}
	}
	return nil
}

// Lock waits for another process that requests the token, at most 5 seconds. Without a lock the token is requested anyway.
func (f tokenFile) Lock(ctx context.Context) (unlock func()) {
	dir := filepath.Dir(f.path)
	if err := durable.EnsureFolder(dir, true); err != nil {
		return func() {} // Save reports the folder
	}
	lock, err := waitForLock(ctx, filepath.Join(dir, "lock-"+strings.ToLower(filepath.Base(f.path)[:1])), tokenLockWait)
	if err != nil {
		return func() {}
	}
	return func() { _ = lock.Close() } // nothing was written to it
}
