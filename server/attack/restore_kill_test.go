//go:build unix

package attack_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/sqlite"
)

// journaledTo returns up to which entry the journals in a folder have whole records, by the heads, which are not encrypted.
func journaledTo(t *testing.T, dir string) (to int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.journal"))
	must(t, err)
	for _, path := range files {
		b, err := os.ReadFile(path)
		must(t, err)
		part := func() []byte {
			if len(b) < 4 || len(b)-4 < int(binary.BigEndian.Uint32(b)) {
				b = nil
				return nil
			}
			n := int(binary.BigEndian.Uint32(b))
			out := b[4 : 4+n]
			b = b[4+n:]
			return out
		}
		for len(b) > 0 {
			var head struct {
				To int64 `json:"to"`
			}
			text := part()
			part()
			if len(b) < 32 { // it is being written
				break
			}
			b = b[32:]
			must(t, json.Unmarshal(text, &head))
			to = max(to, head.To)
		}
	}
	return to
}

// A backup is made while many devices are revoked, and the server is killed while further ones are. The backup and the journal, which
// is all that is left, have every revocation that was answered and journaled before.
func TestRevocationsAroundABackupOutlastTheServer(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	must(t, err)
	data, journal := filepath.Join(t.TempDir(), "data"), t.TempDir()
	t.Setenv("WATCHWORD_BACKUP_RECIPIENTS", id.Recipient().String())
	t.Setenv("WATCHWORD_BACKUP_JOURNAL", journal)
	s := start(t, data, "serve")
	s.until("next ")
	a, err := admin.Local(data)
	must(t, err)
	cfg := server.Defaults()
	cfg.Data = data
	backup := func(name string) string {
		t.Helper()
		file := filepath.Join(t.TempDir(), name)
		_, err := server.CreateBackup(t.Context(), cfg, server.Options{}, file, false, server.BackupKey{Recipients: []string{id.Recipient().String()}})
		must(t, err)
		return file
	}
	const devices, workers, beforeBackup, beforeKill = 240, 4, 40, 120
	for i := range devices {
		_, err := a.CreateDevice(t.Context(), watchword.SubjectID(fmt.Sprint("d-", i)), nil, 0)
		must(t, err)
	}
	first := backup("first")
	for wait := testwait.Within(); ; time.Sleep(10 * time.Millisecond) { // it begins at the newest backup, within a moment
		if files, err := filepath.Glob(filepath.Join(journal, "*.journal")); err != nil || len(files) > 0 {
			must(t, err)
			break
		}
		wait.Check(t, "the journal of the first backup")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	next, answered := 0, map[watchword.SubjectID]bool{}
	half, enough := make(chan struct{}), make(chan struct{})
	for range workers {
		wg.Go(func() {
			for ctx.Err() == nil {
				mu.Lock()
				n := next
				next++
				mu.Unlock()
				if n >= devices {
					return
				}
				id := watchword.SubjectID(fmt.Sprint("d-", n))
				if _, err := a.Revoke(ctx, id, "stolen"); err != nil {
					return // the server is gone
				}
				mu.Lock()
				answered[id] = true
				switch len(answered) {
				case beforeBackup:
					close(half)
				case beforeKill:
					close(enough)
				}
				mu.Unlock()
			}
		})
	}
	testwait.For(t, "the first revocations", half)
	during := backup("during")
	testwait.For(t, "further revocations", enough)
	mu.Lock()
	required := make(map[watchword.SubjectID]bool, len(answered))
	for id := range answered {
		required[id] = true
	}
	mu.Unlock()
	es, err := a.FindEntries(t.Context(), admin.LogQuery{Kind: audit.DeviceRevoke}, devices)
	must(t, err)
	var last int64
	for _, e := range es {
		last = max(last, e.Seq)
	}
	tick, limit := time.NewTicker(10*time.Millisecond), time.NewTimer(testwait.Limit)
	defer tick.Stop()
	defer limit.Stop()
	for journaledTo(t, journal) < last {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("the journal has entries up to %d, waited for %d", journaledTo(t, journal), last)
		}
	}
	s.kill9()
	cancel()
	wg.Wait()
	must(t, os.RemoveAll(data))

	for name, file := range map[string]string{"the backup before": first, "the backup during": during} {
		r := server.RestoreOptions{File: file, Identities: []age.Identity{id}, Data: filepath.Join(t.TempDir(), "restored"), Source: journal}
		done, err := server.RestoreBackup(t.Context(), r, server.Options{})
		if err != nil && strings.Contains(err.Error(), "ends within a record") {
			r.AcceptLoss = true // the kill cut off the last record
			done, err = server.RestoreBackup(t.Context(), r, server.Options{})
		}
		must(t, err)
		if done.Found.To < last {
			t.Errorf("%s: the journal was applied up to %d, want %d", name, done.Found.To, last)
		}
		st, err := sqlite.Open(t.Context(), filepath.Join(r.Data, "watchword.db"), sqlite.Options{})
		must(t, err)
		revoked := 0
		for i := range devices {
			id := watchword.SubjectID(fmt.Sprint("d-", i))
			d, err := st.Subject(t.Context(), watchword.DefaultTenant, id)
			must(t, err)
			if d.State == watchword.Revoked {
				revoked++
			} else if required[id] {
				t.Errorf("%s: %s was revoked before the kill, and is %s", name, id, d.State)
			}
		}
		must(t, st.Close())
		t.Logf("%s: %d of %d devices are revoked; %d were before the kill", name, revoked, devices, len(required))
	}
}
