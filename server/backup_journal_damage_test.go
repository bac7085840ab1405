package server_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/backup"
)

// The running server notices at once that its journal was removed, replaced or changed by another process, says so until the next
// backup, and begins another journal without a gap.
func TestAJournalThatAnotherProcessChangedIsBegunAgain(t *testing.T) {
	server.SetJournalPause(t, 0)
	id, key := newIdentity(t)
	c, dir, files := config(t, filepath.Join(t.TempDir(), "data")), t.TempDir(), t.TempDir()
	c.Backup = server.BackupConfig{Recipients: key.Recipients, Journal: dir, Keep: 2}
	var log lockedBuffer
	m := &machine{}
	s, a, stop := startServer(t, c, m.options(&log, time.Time{}))
	create := func(name string) string {
		file := filepath.Join(files, name)
		_, err := server.CreateBackup(t.Context(), c, quiet, file, false, server.BackupKey{})
		must(t, err)
		return file
	}
	ready := func() string {
		_, body, err := fetch(t, http.MethodGet, "http://"+s.Info().Metrics+"/readyz", "")
		must(t, err)
		return body
	}
	file := create("b")
	device := func(name string) {
		_, err := a.CreateDevice(t.Context(), watchword.SubjectID(name), nil, time.Hour)
		must(t, err)
		covered(t, s, dir, newest(t, a, audit.DeviceCreate))
	}
	for i, tc := range []struct {
		damage string
		change func(path string)
	}{
		{"it was removed", func(path string) { must(t, os.Remove(path)) }},
		{"another file is in its place", func(path string) {
			b, err := os.ReadFile(path)
			must(t, err)
			must(t, os.WriteFile(path+".copy", b, 0o600))
			must(t, os.Rename(path+".copy", path))
		}},
		{"bytes, and this server wrote", func(path string) { must(t, os.Truncate(path, 60)) }},
		{"bytes, and this server wrote", func(path string) {
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			must(t, err)
			_, err = f.Write([]byte("x"))
			must(t, err)
			must(t, f.Close())
		}},
	} {
		device(fmt.Sprint("before-", i))
		found := journals(t, dir)
		path := found[len(found)-1]
		if strings.Contains(log.String(), filepath.Base(path)) {
			t.Errorf("%s: the log names the journal before", tc.damage)
		}
		tc.change(path)
		// Nothing else happens: it is noticed before the next act.
		until(t, "another journal: "+tc.damage, func() bool {
			now := journals(t, dir)
			return len(now) > 0 && now[len(now)-1] != path
		})
		until(t, "a line of the process log: "+tc.damage, func() bool {
			for line := range strings.Lines(log.String()) {
				if strings.Contains(line, filepath.Base(path)) && strings.Contains(line, tc.damage) && strings.Contains(line, "another one begins") {
					return true
				}
			}
			return false
		})
		if body := ready(); !strings.Contains(body, "warning: the journal "+filepath.Base(path)+" was damaged (") || !strings.Contains(body, tc.damage) {
			t.Errorf("%s: /readyz says %q", tc.damage, body)
		}
		device(fmt.Sprint("after-", i))
	}
	stop()
	want := authority(t, c.Data)
	data, read := applyJournals(t, file, dir, id)
	if got := authority(t, data); !reflect.DeepEqual(got, want) || read.Missing != 0 || read.Damage != "" {
		t.Errorf("the restored folder is not the one that was lost: %+v", read)
	}
	s, a, stop = startServer(t, c, m.options(&log, time.Time{}))
	device("last") // the journal is open
	found := journals(t, dir)
	must(t, os.Remove(found[len(found)-1]))
	until(t, "the warning", func() bool { return strings.Contains(ready(), "was damaged") })
	create("c")
	until(t, "the end of the warning with the next backup", func() bool { return !strings.Contains(ready(), "warning") })
	stop()
}

// What changes the journal again and again does not fill its disk with files: after the third within a minute the server waits, and says so.
func TestAJournalThatIsChangedAgainAndAgainIsNotReplacedWithoutEnd(t *testing.T) {
	server.SetJournalRetry(t, 10*time.Millisecond)
	_, key := newIdentity(t)
	c, dir := config(t, filepath.Join(t.TempDir(), "data")), t.TempDir()
	c.Backup = server.BackupConfig{Recipients: key.Recipients, Journal: dir, Keep: 2}
	var log lockedBuffer
	m := &machine{}
	_, _, stop := startServer(t, c, m.options(&log, time.Time{}))
	_, err := server.CreateBackup(t.Context(), c, quiet, filepath.Join(t.TempDir(), "b"), false, server.BackupKey{})
	must(t, err)
	damage := func(n int) {
		until(t, fmt.Sprint("journal ", n), func() bool { return len(journals(t, dir)) == n })
		f, err := os.OpenFile(journals(t, dir)[n-1], os.O_APPEND|os.O_WRONLY, 0)
		must(t, err)
		_, err = f.Write([]byte("x"))
		must(t, err)
		must(t, f.Close())
	}
	for n := range 4 {
		damage(n + 1)
	}
	until(t, "the end of new journals", func() bool { return strings.Contains(log.String(), "another one begins later") })
	if n := len(journals(t, dir)); n != 4 {
		t.Errorf("there are %d journals", n)
	}
	stop()
	server.SetJournalPause(t, 0)
	_, _, stop = startServer(t, c, m.options(&log, time.Time{}))
	until(t, "a journal after the pause", func() bool { return len(journals(t, dir)) == 5 })
	stop()
}

// A record above the limit is halved; one object that exceeds it alone is left out, which is said, blocks nothing, and ends a restore
// whose operator does not accept it.
func TestAJournalHasALimitForItsRecords(t *testing.T) {
	const limit = 48 << 10
	server.SetJournalRetry(t, 50*time.Millisecond)
	server.SetJournalRecordLimit(t, limit)
	id, key := newIdentity(t)
	c, dir, files := config(t, filepath.Join(t.TempDir(), "data")), filepath.Join(t.TempDir(), "disk"), t.TempDir()
	c.Backup = server.BackupConfig{Recipients: key.Recipients, Journal: dir, Keep: 2}
	must(t, os.Mkdir(dir, 0o700))
	var log lockedBuffer
	m := &machine{}
	s, a, stop := startServer(t, c, m.options(&log, time.Time{}))
	file := filepath.Join(files, "b")
	_, err := server.CreateBackup(t.Context(), c, quiet, file, false, server.BackupKey{})
	must(t, err)
	until(t, "the journal", func() bool { return len(journals(t, dir)) == 1 })
	must(t, os.Rename(dir, dir+".away")) // so that what follows comes in one page
	labels := watchword.Labels{}
	for i := range 16 {
		labels[fmt.Sprintf("label-%02d", i)] = strings.Repeat("v", 60)
	}
	for i := range 40 {
		_, err := a.CreateDevice(t.Context(), watchword.SubjectID(fmt.Sprint("lamp-", i)), labels, time.Hour)
		must(t, err)
	}
	for _, path := range journals(t, dir+".away") {
		must(t, os.Remove(path))
	}
	must(t, os.Rename(dir+".away", dir))
	covered(t, s, dir, newest(t, a, audit.DeviceCreate))
	policy := func(size int) {
		text := "subjects = [\"lamp-1\"]\n[[allow]]\npublish = [\"x/#\"]\n"
		_, err := a.ApplyPolicy(t.Context(), "long", []byte(text+strings.Repeat("# "+strings.Repeat("c", 60)+"\n", (size-len(text))/63)), -1)
		must(t, err)
		covered(t, s, dir, newest(t, a, audit.PolicyApply))
	}
	restore := func() error {
		r := server.RestoreOptions{File: file, Identities: []age.Identity{id}, Data: filepath.Join(t.TempDir(), "restored"), Source: dir}
		_, err := server.RestoreBackup(t.Context(), r, quiet)
		return err
	}
	policy(60 << 10)
	_, body, err := fetch(t, http.MethodGet, "http://"+s.Info().Metrics+"/readyz", "")
	must(t, err)
	if !strings.Contains(body, "warning: the journal lacks a change of policy long") || !strings.Contains(log.String(), "too large for the journal") {
		t.Errorf("/readyz says %q", body)
	}
	_, err = a.Suspend(t.Context(), "lamp-1", "") // what follows is journaled
	must(t, err)
	covered(t, s, dir, newest(t, a, audit.DeviceSuspend))
	_, read := applyJournals(t, file, dir, id)
	if want := []backup.Ref{{Kind: backup.PolicyObject, Tenant: watchword.DefaultTenant, ID: "long"}}; !reflect.DeepEqual(read.Omitted, want) || read.Missing != 0 {
		t.Errorf("omitted are %v, want %v; %d entries are missing", read.Omitted, want, read.Missing)
	}
	if err := restore(); watchword.CodeOf(err) != watchword.Conflict || !strings.Contains(err.Error(), "policy long") {
		t.Errorf("a restore without the policy: %v", err)
	}
	policy(10 << 10) // a later record has it whole
	stop()
	want := authority(t, c.Data)
	var data string
	data, read = applyJournals(t, file, dir, id)
	if got := authority(t, data); !reflect.DeepEqual(got, want) || len(read.Omitted) > 0 || read.Records < 5 {
		t.Errorf("the restored folder is not the one that was lost: %d records, omitted %v", read.Records, read.Omitted)
	}
	if err := restore(); err != nil {
		t.Errorf("a restore with the whole policy: %v", err)
	}
}
