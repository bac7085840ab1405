package storetest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/enroll"
)

// T is one run through one store. Its clock does not advance unless a contract advances it.
type T struct {
	*testing.T
	Store
	ctx context.Context
	now time.Time
}

// Run walks through every contract, each with an empty store of its own.
func Run(t *testing.T, open func(t *testing.T) Store) {
	for _, contract := range []struct {
		name string
		walk func(*T)
	}{
		{"a store is initialized once", initialized},
		{"bundles only grow", bundles},
		{"keys turn whole or not at all", rotatingKeys},
		{"the clock's mark is kept", clockMark},
		{"a subject's life", subjectLife},
		{"ids are never free again", tombstones},
		{"a deleted device's id is free once it is forgotten", forgottenDevice},
		{"a subject has a name", subjectNames},
		{"subjects are counted by state and label", subjectCounts},
		{"walks pass subjects in order", subjectWalks},
		{"subjects are seen", lastSeen},
		{"labels find subjects, page by page", subjectPages},
		{"selectors choose subjects", selectedSubjects},
		{"labels are replaced under their version", labelsUnderVersion},
		{"each edit of labels says what it replaced", labelsOfManyEditors},
		{"a proof is required or not", proofRequired},
		{"suspending keeps, revoking ends", revocationEndsAccess},
		{"a role is set, and moves the authority version", rolesAreSet},
		{"the last owner stays", lastOwnerStays},
		{"keys are added, and revoked one by one", keysOfAnOperator},
		{"new keys have a bound, in whichever way they come", newKeysBound},
		{"a key that is there gets an end", keyEndSet},
		{"keys end", keysEnd},
		{"the last owner keeps a key without an end", lastOwnerKeepsAKey},
		{"an owner is recovered, and operators are told", ownerRecovered},
		{"a code is redeemed once", codeOnce},
		{"of two racing devices one wins", codeRace},
		{"a code ends with what it was decided on", voidCodes},
		{"a code of a suspended subject is refused", codeRefused},
		{"keys are used once in a tenant", keysOnce},
		{"keys are changed by who holds them, once", rekeyOnce},
		{"of racing key changes one wins", rekeyRace},
		{"a history of keys has a bound", rekeyBound},
		{"a pairing waits for an operator's word", pairingLife},
		{"the same keys ask again", pairingAgain},
		{"pairings that wait have a bound", pairingBounds},
		{"a pairing approved for a device that is there", pairingExisting},
		{"of two operators one decides", pairingRace},
		{"pairings are listed until they expire", pairingLists},
		{"a login waits for an approver", loginLife},
		{"a login approved for an operator that is there", loginExisting},
		{"logins and pairings have bounds of their own", loginBounds},
		{"tokens are issued to subjects that may have them", tokens},
		{"one token is revoked alone", tokenRevoked},
		{"an assertion is spent once, however many race", assertionRace},
		{"what is over is forgotten", prune},
		{"policies count their versions", policies},
		{"commands take numbers without gaps", sequenceNumbers},
		{"numbers have no gaps under a race", sequenceNumbersRace},
		{"the same request acts once", idempotent},
		{"a queue has a bound", queueBound},
		{"unfinished commands are counted by who ordered them", unfinished},
		{"of racing orders as many pass as there is room", unfinishedRace},
		{"a command's way to its device", handingOver},
		{"only a fitting receipt settles", applyingReceipts},
		{"what a device cannot take", undelivering},
		{"a command is stored as each step returns it", storedWhole},
		{"commands end on time", expiring},
		{"a command ends with its device's incarnation", incarnations},
		{"lists of commands", commandLists},
		{"commands are deleted after their end", commandRetention},
		{"functions and twins", twins},
		{"walls between tenants", tenantIsolation},
		{"the log has no gaps", entries},
		{"the log is a tree", logTree},
		{"the log is searched", logSearch},
		{"checkpoints are kept", checkpoints},
		{"of old checkpoints one of each hour is kept", fewerCheckpoints},
		{"what is pruned leaves its hash", pruning},
		{"what the MQTT server stores survives", mqttStateSurvives},
		{"a refused step leaves nothing", refusedLeavesNothing},
		{"an act that was decided on something older does not commit", staleVersionsRefused},
		{"an act that was decided on the current versions commits", currentVersionsCommit},
		{"what changes a subject returns the version that it has then", versionReturned},
		{"of two who revoke each other one does", versionsRace},
	} {
		t.Run(contract.name, func(t *testing.T) {
			st := open(t)
			t.Cleanup(func() {
				if err := st.Close(); err != nil {
					t.Error(err)
				}
			})
			contract.walk(&T{t, st, t.Context(), time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)})
		})
	}
}

const (
	tenant      = watchword.DefaultTenant
	otherTenant = watchword.TenantID("other")
)

// must stops at an error.
func (t *T) must(err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantCode fails unless err has the code ("" for none).
func (t *T) wantCode(code watchword.Code, err error) {
	t.Helper()
	if got := watchword.CodeOf(err); got != code {
		t.Fatalf("got %q (%v), want %q", got, err, code)
	}
}

// equal fails unless got equals want.
func equal[V comparable](t *T, what string, got, want V) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

func (t *T) entry(kind, object string) audit.Entry {
	return audit.Entry{Tenant: tenant, At: t.now, Kind: kind, Object: object, Outcome: audit.Done, Data: map[string]string{"why": "test"}}
}

// log returns how many entries there are.
func (t *T) log() int {
	t.Helper()
	es, err := t.Entries(0, 100_000)
	t.must(err)
	return len(es)
}

// Entries reads the log, once everything in it has its number.
func (t *T) Entries(after int64, limit int) ([]audit.Entry, error) {
	if err := t.Sequence(t.ctx); err != nil {
		return nil, err
	}
	return audit.Entries(t.ctx, t, after, limit)
}

func (t *T) add(id watchword.SubjectID, l watchword.Labels) watchword.Subject {
	t.Helper()
	s := watchword.Subject{Tenant: tenant, ID: id, Kind: watchword.Device, State: watchword.New, Labels: l, Created: t.now, Changed: t.now}
	t.must(t.CreateSubject(t.ctx, s, nil, t.entry(audit.DeviceCreate, string(id))))
	s.Version, s.Incarnation = 1, 1
	return s
}

func (t *T) code(id watchword.SubjectID, name string) enroll.Code {
	return enroll.Code{Tenant: tenant, Hash: sha256.Sum256([]byte(name)), Subject: id, Expires: t.now.Add(time.Hour), CreatedBy: "operator"}
}

func (t *T) redemption(codeName, keys string) enroll.Redemption {
	key := func(p watchword.Purpose) watchword.Key {
		return watchword.Key{
			ID: watchword.KeyID(fmt.Sprintf("%s-%s", keys, p)), Purpose: p, JWK: []byte(`{"kty":"test"}`), State: watchword.KeyActive, Added: t.now,
		}
	}
	return enroll.Redemption{Tenant: tenant, Hash: sha256.Sum256([]byte(codeName)), Sign: key(watchword.Sign), Seal: key(watchword.Seal)}
}

// enrolled adds a device that is active with the keys ID-sign and ID-seal.
func (t *T) enrolled(id watchword.SubjectID) watchword.Subject {
	t.Helper()
	t.add(id, nil)
	return t.enroll(id, string(id))
}

func (t *T) enroll(id watchword.SubjectID, keys string) watchword.Subject {
	t.Helper()
	name := "code of " + keys
	t.must(t.AddCode(t.ctx, t.code(id, name), t.entry(audit.DeviceLink, string(id))))
	s, _, err := t.RedeemCode(t.ctx, t.redemption(name, keys), t.now, t.entry(audit.DeviceEnroll, ""))
	t.must(err)
	return s
}

// race runs f n times at once and returns the errors.
func race(n int, f func(i int) error) []error {
	errs := make([]error, n)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-start
			errs[i] = f(i)
		})
	}
	close(start)
	wg.Wait()
	return errs
}

// count counts the errors by code.
func count(errs []error) map[watchword.Code]int {
	out := map[watchword.Code]int{}
	for _, err := range errs {
		out[watchword.CodeOf(err)]++
	}
	return out
}
