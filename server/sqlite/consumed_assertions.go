package sqlite

import (
	"context"
	"errors"
	"hash/maphash"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/token"
)

// consumedAssertions is the set of used single-use credentials that have not expired: an index over random names, in
// memory, because on the disk it would cost half of what a token costs. Its elements are in the tables too, and are read
// from there at start. It belongs to the writer: elements that a step adds are removed when it is rolled back.
type consumedAssertions struct {
	seed    maphash.Seed
	max     int
	count   int
	buckets map[int64]map[uint64]struct{} // by expiry: few buckets, since assertions are short-lived
	added   []consumedKey                 // in the transaction that is open
	// restored is when the server was restored from a backup; zero: never. What was used between the backup and the restore is in
	// no table, so that no credential of before the restore is accepted.
	restored time.Time
}

type consumedKey struct {
	bucket int64
	hash   uint64
}

const (
	consumedBucket = 5 * time.Minute
	// maxConsumed is how many are held at once, at some 20 bytes each: 10,000 a second.
	maxConsumed = 4 << 20
)

func newConsumedAssertions() *consumedAssertions {
	return &consumedAssertions{seed: maphash.MakeSeed(), max: maxConsumed, buckets: map[int64]map[uint64]struct{}{}}
}

// key identifies an assertion by a 64-bit keyed hash. A collision is less likely than a disk error,
// and would cost one client a second attempt.
func (u *consumedAssertions) key(tenant watchword.TenantID, id watchword.SubjectID, s token.SingleUse) consumedKey {
	var h maphash.Hash
	h.SetSeed(u.seed)
	for _, part := range []string{string(tenant), string(id), s.JTI} { // hashing cannot fail
		_, _ = h.WriteString(part)
		_ = h.WriteByte(0)
	}
	return consumedKey{s.Expires.Unix() / int64(consumedBucket/time.Second), h.Sum64()}
}

// has reports whether the assertion was consumed, whatever expiry it claims now.
func (u *consumedAssertions) has(k consumedKey) bool {
	for _, b := range u.buckets {
		if _, ok := b[k.hash]; ok {
			return true
		}
	}
	return false
}

// add marks an assertion as consumed within the open transaction. Code: busy.
func (u *consumedAssertions) add(k consumedKey) error {
	if u.count >= u.max {
		return &watchword.Error{Code: watchword.Busy, Detail: "too many assertions were used within five minutes", RetryAfter: consumedBucket}
	}
	u.put(k)
	u.added = append(u.added, k)
	return nil
}

func (u *consumedAssertions) put(k consumedKey) {
	b := u.buckets[k.bucket]
	if b == nil {
		b = map[uint64]struct{}{}
		u.buckets[k.bucket] = b
	}
	b[k.hash] = struct{}{}
	u.count++
}

// undo removes what was added after the mark.
func (u *consumedAssertions) undo(to int) {
	for _, k := range u.added[to:] {
		delete(u.buckets[k.bucket], k.hash)
		u.count--
	}
	u.added = u.added[:to]
}

// forget drops what expired before a time.
func (u *consumedAssertions) forget(before time.Time) {
	for at, b := range u.buckets {
		if (at+1)*int64(consumedBucket/time.Second) <= before.Unix() {
			u.count -= len(b)
			delete(u.buckets, at)
		}
	}
}

// assertionMemory is how long before a time a token was issued at the earliest, if its assertion is accepted at that time: the
// assertion's lifetime, and the skew before and after it.
const assertionMemory = token.AssertionLifetime + 2*token.Skew

// firstToken returns a number that precedes those of all tokens whose assertions may still be accepted. Numbers of tokens sort by time. A clock
// that is ahead of the newest token is not relied on: it may go back.
func firstToken(ctx context.Context, from querier, now time.Time) (string, error) {
	newest, err := queryOne(ctx, from, func(r scanner) (t time.Time, err error) {
		var issued int64
		err = r.Scan(&issued)
		return fromMillis(issued), err
	}, error(nil), `SELECT issued FROM tokens WHERE jti = (SELECT max(jti) FROM tokens)`)
	if err != nil || newest.IsZero() {
		return "", err
	}
	if newest.Before(now) {
		now = newest
	}
	return watchword.FormatID("tok_", now.Add(-assertionMemory), 0, 0), nil
}

// load reads the consumed assertions from the tables: of tokens those that may be accepted at a time or later.
func (u *consumedAssertions) load(ctx context.Context, from querier, now time.Time) error {
	switch is, err := instance(ctx, from); {
	case err == nil:
		u.restored = is.RestoredAt
	case !errors.Is(err, keyring.ErrNotInitialized):
		return err
	}
	first, err := firstToken(ctx, from, now)
	if err != nil {
		return err
	}
	for q, args := range map[string][]any{
		`SELECT tenant, subject, jti, expires FROM consumed_jtis`:                         nil,
		`SELECT tenant, subject, assertion, assertion_expires FROM tokens WHERE jti >= ?`: {first},
	} {
		_, err := queryAll(ctx, from, func(r scanner) (none struct{}, err error) {
			var tenant watchword.TenantID
			var id watchword.SubjectID
			var s token.SingleUse
			var ends int64
			if err = r.Scan(&tenant, &id, &s.JTI, &ends); err != nil {
				return none, err
			}
			s.Expires = fromMillis(ends)
			if k := u.key(tenant, id, s); !u.has(k) {
				u.put(k)
			}
			return none, nil
		}, q, args...)
		if err != nil {
			return err
		}
	}
	return nil
}
