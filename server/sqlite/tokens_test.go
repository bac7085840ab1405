package sqlite

import (
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/token"
)

// The statement that issues a token has the rule's conditions once more: it issues where the rule does, and nowhere else.
func TestTokenIssueFollowsRule(t *testing.T) {
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	t.Cleanup(func() { _ = s.Close() })
	at, n, issued := time.Now().Truncate(time.Millisecond), 0, 0
	expires := at.Add(time.Minute)
	for _, state := range []watchword.State{watchword.New, watchword.Active, watchword.Suspended, watchword.Revoked} {
		for _, purpose := range []watchword.Purpose{watchword.Sign, watchword.Seal} {
			for _, key := range []watchword.KeyState{watchword.KeyActive, watchword.KeyRetired, watchword.KeyRevoked} {
				for bits := range 1 << 6 {
					owner, life, deleted, used := bits&1 == 0, int64(1+bits>>1&1), bits&4 != 0, bits&8 != 0
					// The key has no end, or ends before the token, with it, or after it.
					ends := [...]time.Time{{}, expires.Add(-time.Millisecond), expires, expires.Add(time.Millisecond)}[bits>>4]
					n++
					jti := fmt.Sprintf("tok_%04d", n)
					id, of := watchword.SubjectID("lamp-"+jti), watchword.SubjectID("lamp-"+jti)
					if !owner {
						of = "another"
					}
					spent := token.SingleUse{JTI: "a", Expires: at.Add(time.Minute)}
					err := s.w.do(t.Context(), func(t *tx) error {
						err := t.addSubject(watchword.Subject{Tenant: here, ID: id, Kind: watchword.Device, State: state, Version: 1, Incarnation: 1, Created: at, Changed: at})
						if err == nil {
							err = t.addKey(here, of, watchword.Key{ID: watchword.KeyID(jti), Purpose: purpose, JWK: []byte("{}"), State: key, Added: at, Ends: ends})
						}
						if err == nil && deleted {
							_, err = t.exec(`UPDATE subjects SET deleted = 1 WHERE tenant = ? AND id = ?`, here, id)
						}
						if err == nil && used {
							err = t.consumeAssertion(here, id, spent)
						}
						return err
					})
					if err != nil {
						t.Fatal(err)
					}
					r := token.Record{Tenant: here, JTI: jti, Subject: id, Incarnation: life, Key: watchword.KeyID(jti), Issued: at, Expires: expires}
					h := token.SubjectState{Kind: watchword.Device, State: state, Incarnation: 1, HasKey: owner && purpose == watchword.Sign && key == watchword.KeyActive, KeyEnds: ends}
					if deleted {
						h = token.SubjectState{}
					}
					want := watchword.CodeOf(r.Issue(h, used))
					wants(t, fmt.Sprintf("%+v, used %v", h, used), s.IssueToken(t.Context(), r, spent, audit.Actor{Tenant: here}.DoneEntry(audit.TokenIssue, jti, at, nil)), want)
					if want == "" {
						issued++
					}
				}
			}
		}
	}
	if issued != 3 {
		t.Errorf("%d of %d cases were issued", issued, n)
	}
}

// BenchmarkIssueToken issues tokens to many subjects at once.
func BenchmarkIssueToken(b *testing.B) {
	s, err := Open(b.Context(), filepath.Join(b.TempDir(), "db"), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	at := time.Now()
	const subjects = 500
	id := func(i int64) watchword.SubjectID { return watchword.SubjectID(fmt.Sprint("lamp-", i%subjects)) }
	err = s.w.do(b.Context(), func(t *tx) error {
		for i := range int64(subjects) {
			if err := t.addSubject(watchword.Subject{Tenant: here, ID: id(i), Kind: watchword.Device, State: watchword.Active, Version: 1, Incarnation: 1, Created: at, Changed: at}); err != nil {
				return err
			}
			if err := t.addKey(here, id(i), watchword.Key{ID: watchword.KeyID(id(i)), Purpose: watchword.Sign, JWK: []byte("{}"), State: watchword.KeyActive, Added: at}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	var n atomic.Int64
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := n.Add(1)
			jti := fmt.Sprintf("tok_%09d", i)
			r := token.Record{Tenant: here, JTI: jti, Subject: id(i), Incarnation: 1, Key: watchword.KeyID(id(i)), Issued: at, Expires: at.Add(time.Minute)}
			e := audit.Actor{Tenant: here, Subject: id(i), Key: r.Key}.DoneEntry(audit.TokenIssue, jti, at, nil)
			if err := s.IssueToken(b.Context(), r, token.SingleUse{JTI: jti, Expires: at.Add(time.Minute)}, e); err != nil {
				b.Fatal(err)
			}
		}
	})
}
