package verify

import (
	"encoding/json"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/token"
)

// keysFile is the content of the cache file. Any user that can write it determines which keys are trusted, so it is as
// private as a key.
type keysFile struct {
	Issuer  string            `json:"issuer"`
	Fetched int64             `json:"fetched"`
	Keys    []json.RawMessage `json:"keys"`
}

// saveKeys replaces the file atomically, with mode 0600.
func saveKeys(path, issuer string, s *keySet) error {
	c := keysFile{Issuer: issuer, Fetched: s.fetched.Unix(), Keys: []json.RawMessage{}}
	for id, k := range s.keys {
		jwk := k.JWK()
		c.Keys = append(c.Keys, append(append([]byte(nil), jwk[:len(jwk)-1]...), `,"kid":"`+string(id)+`"}`...))
	}
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return durable.WriteFile(path, append(b, '\n'), 0o600)
}

// loadKeys reads the cache file. Codes: key_exposed, key_damaged, issuer_mismatch; or the error of the system, for example
// that the file does not exist.
func loadKeys(path, issuer string, now time.Time) (*keySet, error) {
	b, err := durable.ReadPrivate(path)
	if watchword.CodeOf(err) == watchword.KeyExposed {
		return nil, watchword.Wrap(err, watchword.KeyExposed, "%s can be read or written by others, so its keys are not used", path)
	}
	if err != nil {
		return nil, err
	}
	var c keysFile
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, watchword.Wrap(err, watchword.KeyDamaged, "%s was changed after it was written, or is damaged", path)
	}
	if c.Issuer != issuer {
		return nil, watchword.Refuse(watchword.IssuerMismatch, "%s must contain the keys of the expected issuer", path)
	}
	keys, err := parseJWKS(b) // parseJWKS ignores the members besides keys
	if err != nil {
		return nil, watchword.Wrap(err, watchword.KeyDamaged, "%s was changed after it was written, or is damaged", path)
	}
	fetched := time.Unix(c.Fetched, 0)
	if c.Fetched <= 0 || fetched.After(now.Add(token.Skew)) {
		return nil, watchword.Refuse(watchword.KeyDamaged, "%s is from the future, or this clock is wrong", path)
	}
	return &keySet{keys, fetched}, nil
}
