package sqlite

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/keyring"
)

// A change that cannot be applied again ends a restore whose operator did not accept a loss, and leaves nothing.
func TestARestoreWithoutAChangeNeedsAcceptLoss(t *testing.T) {
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	t.Cleanup(func() { _ = s.Close() })
	now := time.Now().UTC().Truncate(time.Second)
	by := audit.Actor{Tenant: watchword.DefaultTenant}
	lost := by.DoneEntry(audit.DeviceRevoke, "lamp-1", now, nil)
	lost.Seq = 7
	r := Restore{
		RestoredState: keyring.RestoredState{Instance: keyring.Instance{Epoch: 9, LogOrigin: "hub/log/9", RestoredAt: now}},
		First:         by.DoneEntry(audit.LogRestore, "hub/log/9", now, nil), Replay: []audit.Entry{lost}, Now: now,
	}
	size := func() int64 {
		tree, err := s.Tree(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return tree.Size()
	}
	before := size()
	_, err := s.Restore(t.Context(), r)
	if watchword.CodeOf(err) != watchword.Conflict || !strings.Contains(err.Error(), "device.revoke lamp-1 (entry 7)") || size() != before {
		t.Errorf("not accepted: %v, %d entries, before %d", err, size(), before)
	}
	r.AcceptLoss = true
	done, err := s.Restore(t.Context(), r)
	if err != nil || len(done.Replayed) != 1 || done.Replayed[0].Err == nil || size() != before+1 {
		t.Errorf("accepted: %+v, %v, %d entries, before %d", done.Replayed, err, size(), before)
	}
}
