package storetest

import (
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
)

// commandRetention holds that commands are deleted by the time of their end, oldest first, at most as many as asked for, with what
// was handed over; unfinished ones stay, and so do those of another end.
func commandRetention(t *T) {
	t.enrolled("lamp-1")
	start := t.now
	for i := range 6 {
		t.order(i, "lamp-1")
		t.must(t.handOver(i, "hash"))
	}
	for i := range 4 { // 0 to 3 end an hour apart; 4 and 5 stay
		t.now = start.Add(time.Duration(i) * time.Hour)
		_, _, err := t.applyReceipt(i, int64(i+1), "hash", watchword.StatusDone)
		t.must(err)
	}
	n, err := t.DeleteSettledCommands(t.ctx, start, 10)
	t.must(err)
	equal(t, "ended before the first end", n, 0)
	n, err = t.DeleteSettledCommands(t.ctx, start.Add(3*time.Hour), 2)
	t.must(err)
	equal(t, "at most two", n, 2)
	n, err = t.DeleteSettledCommands(t.ctx, start.Add(3*time.Hour), 2)
	t.must(err)
	equal(t, "the third one", n, 1)
	for i := range 6 {
		_, err := t.Command(t.ctx, tenant, commandID(i))
		handed, herr := t.Handovers(t.ctx, tenant, commandID(i))
		t.must(herr)
		if stays := i >= 3; stays != (err == nil) || stays != (len(handed) == 1) {
			t.Errorf("command %d: %v, and %d versions", i, err, len(handed))
		}
	}
	// The counts of unfinished commands and the device's numbers go on.
	t.enrolled("lamp-9")
	t.wantUnfinished("after the deletion", "operator", 2, 2)
	equal(t, "the next number", t.order(10, "lamp-1").Seq, 7)
	t.revoked("lamp-1")
	n, err = t.DeleteSettledCommands(t.ctx, start.Add(100*24*time.Hour), 100)
	t.must(err)
	equal(t, "of a revoked device", n, 5) // 3, 4, 5, 10, and the probe of wantUnfinished
}

func (t *T) revoked(id watchword.SubjectID) {
	t.Helper()
	_, err := t.Revoke(t.ctx, tenant, id, t.now, t.entry(audit.DeviceRevoke, string(id)))
	t.must(err)
}
