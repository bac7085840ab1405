package sqlite_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/sqlite"
	"github.com/watchword-iot/watchword/server/storetest"
)

func open(t testing.TB, path string) *sqlite.Store {
	t.Helper()
	st, err := sqlite.Open(t.Context(), path, sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestStoreContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Store { return open(t, filepath.Join(t.TempDir(), "test.db")) })
}

func TestIsPrivateAndOpensAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b?c#d%41.db")
	st := open(t, path)
	e := audit.Entry{Tenant: watchword.DefaultTenant, At: time.UnixMilli(1), Kind: audit.ServerStart, Outcome: audit.Done}
	if err := st.AddEntry(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("mode %04o, want 0600", got)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	st = open(t, path)
	es, err := audit.Entries(t.Context(), st, 0, 10)
	if err != nil || len(es) != 1 || es[0].Kind != audit.ServerStart {
		t.Errorf("entries after opening again: %v, %v", es, err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	if err := st.Ping(t.Context()); watchword.CodeOf(err) != watchword.Unavailable {
		t.Errorf("a closed store answers %v", err)
	}
}

func TestNonDatabaseFileIsUnavailable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	if err := os.WriteFile(path, []byte("this is no database, and it is long enough to be seen as none at all........................................"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := sqlite.Open(t.Context(), path, sqlite.Options{})
	if watchword.CodeOf(err) != watchword.Unavailable {
		t.Errorf("got %v, want unavailable", err)
	}
}

func BenchmarkAddEntry(b *testing.B) {
	st := open(b, filepath.Join(b.TempDir(), "bench.db"))
	defer st.Close()
	e := audit.Entry{Tenant: watchword.DefaultTenant, At: time.UnixMilli(1), Kind: audit.ServerStart, Outcome: audit.Done}
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := st.AddEntry(b.Context(), e); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func TestErasedKeyIsOverwrittenInFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.db")
	st := open(t, path)
	at := time.UnixMilli(1)
	e := audit.Entry{Tenant: watchword.DefaultTenant, At: at, Kind: audit.KeyCreate, Outcome: audit.Done}
	private := bytes.Repeat([]byte("secret half "), 20)
	key := func(id watchword.KeyID) keyring.SealedKey {
		return keyring.SealedKey{ID: id, Role: keyring.Root, State: keyring.Active, Public: []byte("public"), Private: private, Created: at, Starts: at}
	}
	for _, turn := range []keyring.KeyUpdate{
		{Add: []keyring.SealedKey{key("offline"), key("revoked")}},
		{Change: []keyring.StateChange{
			{Role: keyring.Root, ID: "offline", From: keyring.Active, To: keyring.Active, Starts: at, Private: []byte{}},
		}},
		{Change: []keyring.StateChange{
			{Role: keyring.Root, ID: "revoked", From: keyring.Active, To: keyring.Revoked, Starts: at, Ends: at},
		}},
	} {
		if err := st.RotateKeys(t.Context(), turn, e); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(b, []byte("secret half")); n > 0 {
		t.Errorf("%d pieces of it are left", n)
	}
}
