package sqlite

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/enroll"
)

// Commands of before the counts are counted when the file is opened.
func TestExistingCommandsAreCounted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := opened(t, path)
	at := time.UnixMilli(1_000_000)
	e := audit.Entry{Tenant: watchword.DefaultTenant, At: at, Kind: audit.CommandOrder, Outcome: audit.Done}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	lamp := watchword.Subject{Tenant: watchword.DefaultTenant, ID: "lamp", Kind: watchword.Device, State: watchword.New, Created: at, Changed: at}
	must(s.CreateSubject(t.Context(), lamp, &enroll.Code{Tenant: lamp.Tenant, Subject: lamp.ID, Expires: at.Add(time.Hour)}, e))
	add := func(id int, by watchword.SubjectID, b command.Bounds) error {
		_, _, err := s.AddCommand(t.Context(), audit.Actor{}, command.Row{
			Tenant: lamp.Tenant, ID: watchword.CommandID(fmt.Sprint("cmd_", id)), Device: lamp.ID, Function: "f", Args: []byte("{}"), By: by, Created: at, Expires: at.Add(time.Hour),
		}, command.Idempotency{}, b, audit.FixedEntry[command.Row](e))
		return err
	}
	for i := range 5 {
		must(add(i, []watchword.SubjectID{"alice", "bob"}[i%2], command.Bounds{}))
	}
	_, err := s.CancelCommand(t.Context(), audit.Actor{Tenant: lamp.Tenant}, "cmd_0", at, audit.FixedEntry[command.Row](e))
	must(err)
	must(s.Close())

	db, err := sql.Open("sqlite", dsn(path, "rwc", "journal_mode(WAL)"))
	must(err)
	p, err := provider(db)
	must(err)
	_, err = p.DownTo(t.Context(), 14)
	must(err)
	must(db.Close())
	s = opened(t, path)
	defer func() { must(s.Close()) }()
	for i, c := range []struct {
		by    watchword.SubjectID
		most  command.Bounds
		taken bool
	}{
		{"alice", command.Bounds{PerOrderer: 2}, false},
		{"bob", command.Bounds{PerOrderer: 2}, false},
		{"carol", command.Bounds{PerOrderer: 1, Total: 4}, false},
		{"carol", command.Bounds{PerOrderer: 1, Total: 5}, true},
		{"alice", command.Bounds{PerOrderer: 3}, true},
		{"bob", command.Bounds{PerOrderer: 3, Total: 7}, true},
	} {
		err := add(10+i, c.by, c.most)
		if c.taken && err != nil || !c.taken && watchword.CodeOf(err) != watchword.Busy {
			t.Errorf("one more of %s within %+v: %v", c.by, c.most, err)
		}
	}
}

// A file may have every later migration and lack one that came after them.
func TestOutOfOrderMigrationIsApplied(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(opened(t, path).Close())
	db, err := sql.Open("sqlite", dsn(path, "rwc", "journal_mode(WAL)"))
	check(err)
	p, err := provider(db)
	check(err)
	_, err = p.ApplyVersion(t.Context(), 15, false)
	check(err)
	version, err := p.GetDBVersion(t.Context())
	check(err)
	if version <= 15 {
		t.Fatalf("the file is of version %d", version)
	}
	check(db.Close())
	s := opened(t, path)
	defer func() { check(s.Close()) }()
	var n int
	check(s.db.QueryRowContext(t.Context(), `SELECT n FROM unfinished_commands WHERE tenant = '' AND orderer = ''`).Scan(&n))
	if n != 0 {
		t.Errorf("%d unfinished commands", n)
	}
}

// BenchmarkAddCommand adds commands of one orderer that has so many unfinished.
func BenchmarkAddCommand(b *testing.B) {
	for _, n := range []int{0, 50_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, err := Open(b.Context(), filepath.Join(b.TempDir(), "db"), Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			at := time.UnixMilli(1_000_000)
			e := audit.Entry{Tenant: watchword.DefaultTenant, At: at, Kind: audit.CommandOrder, Outcome: audit.Done}
			const devices = 500
			for i := range devices {
				if err := s.CreateSubject(b.Context(), watchword.Subject{Tenant: watchword.DefaultTenant, ID: watchword.SubjectID(fmt.Sprint("lamp-", i)), Kind: watchword.Device, State: watchword.New, Created: at, Changed: at}, nil, e); err != nil {
					b.Fatal(err)
				}
			}
			add := func(i int) error {
				r := command.Row{
					Tenant: watchword.DefaultTenant, ID: watchword.CommandID(fmt.Sprintf("cmd_%09d", i)), Device: watchword.SubjectID(fmt.Sprint("lamp-", i%devices)), Function: "f",
					Args: []byte("{}"), By: "alice", Created: at, Expires: at.Add(time.Hour),
				}
				_, _, err := s.AddCommand(b.Context(), audit.Actor{}, r, command.Idempotency{}, command.Bounds{PerOrderer: 1 << 30, Total: 1 << 30}, audit.FixedEntry[command.Row](e))
				return err
			}
			errs := make(chan error)
			for w := range 64 {
				go func() {
					for i := w; i < n; i += 64 {
						if err := add(i); err != nil {
							errs <- err
							return
						}
					}
					errs <- nil
				}()
			}
			for range 64 {
				if err := <-errs; err != nil {
					b.Fatal(err)
				}
			}
			for i := n; b.Loop(); i++ {
				if err := add(i); err != nil {
					b.Fatal(err)
				}
				if _, err := s.CancelCommand(b.Context(), audit.Actor{Tenant: watchword.DefaultTenant}, watchword.CommandID(fmt.Sprintf("cmd_%09d", i)), at, audit.FixedEntry[command.Row](e)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
