package storetest

import (
	"fmt"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
)

func codeOnce(t *T) {
	t.add("lamp-1", nil)
	t.must(t.AddCode(t.ctx, t.code("lamp-1", "old"), t.entry(audit.DeviceLink, "lamp-1")))
	t.must(t.AddCode(t.ctx, t.code("lamp-1", "new"), t.entry(audit.DeviceLink, "lamp-1")))
	e := t.entry(audit.DeviceEnroll, "")
	_, _, err := t.RedeemCode(t.ctx, t.redemption("old", "k"), t.now, t.entry(audit.DeviceEnroll, ""))
	t.wantCode(watchword.CodeInvalid, err)
	n := t.log()
	_, replay, err := t.RedeemCode(t.ctx, t.redemption("new", "k"), t.now, t.entry(audit.DeviceEnroll, ""))
	t.must(err)
	equal(t, "replay", replay, false)
	es, err := t.Entries(int64(n), 10)
	t.must(err)
	if len(es) != 1 || es[0].Object != "lamp-1" || es[0].Actor != "lamp-1" {
		t.Fatalf("entries: %+v", es)
	}
	s, replay, err := t.RedeemCode(t.ctx, t.redemption("new", "k"), t.now.Add(time.Minute), e)
	t.must(err)
	equal(t, "the same keys again", replay, true)
	equal(t, "the same subject", s.ID, "lamp-1")
	equal(t, "no entry for it", t.log(), n+1)
	_, _, err = t.RedeemCode(t.ctx, t.redemption("new", "others"), t.now, t.entry(audit.DeviceEnroll, ""))
	t.wantCode(watchword.CodeInvalid, err)
	_, _, err = t.RedeemCode(t.ctx, t.redemption("new", "k"), t.now.Add(time.Hour), e)
	t.wantCode(watchword.CodeInvalid, err)
}

func codeRace(t *T) {
	t.add("lamp-1", nil)
	t.must(t.AddCode(t.ctx, t.code("lamp-1", "c"), t.entry(audit.DeviceLink, "lamp-1")))
	errs := count(race(16, func(i int) error {
		_, _, err := t.RedeemCode(t.ctx, t.redemption("c", fmt.Sprint("k", i)), t.now, t.entry(audit.DeviceEnroll, ""))
		return err
	}))
	if errs[""] != 1 || errs[watchword.CodeInvalid] != 15 {
		t.Fatalf("sixteen devices with one code: %v", errs)
	}
	s, err := t.Subject(t.ctx, tenant, "lamp-1")
	t.must(err)
	equal(t, "keys", len(s.Keys), 2)
}

// codeRefused leaves a code as it was where it is refused.
func codeRefused(t *T) {
	t.add("lamp-1", nil)
	e := t.entry(audit.DeviceLink, "lamp-1")
	t.must(t.AddCode(t.ctx, t.code("lamp-1", "c"), e))
	redeem := func(code string, now time.Time) error {
		_, _, err := t.RedeemCode(t.ctx, t.redemption(code, "k"), now, t.entry(audit.DeviceEnroll, ""))
		return err
	}
	t.wantCode(watchword.CodeInvalid, redeem("unknown", t.now))
	t.wantCode(watchword.CodeInvalid, redeem("c", t.now.Add(time.Hour)))
	_, err := t.Suspend(t.ctx, tenant, "lamp-1", t.now, e)
	t.must(err)
	t.wantCode(watchword.CodeInvalid, redeem("c", t.now))
	t.wantCode(watchword.Conflict, t.AddCode(t.ctx, t.code("lamp-1", "d"), e)) // which would have taken the place of c
	_, err = t.Resume(t.ctx, tenant, "lamp-1", t.now, e)
	t.must(err)
	t.must(redeem("c", t.now))
	_, err = t.Revoke(t.ctx, tenant, "lamp-1", t.now, e)
	t.must(err)
	t.wantCode(watchword.CodeInvalid, redeem("c", t.now)) // revoking deletes codes
}

func keysOnce(t *T) {
	t.enrolled("lamp-1")
	t.add("lamp-2", nil)
	e := t.entry(audit.DeviceLink, "lamp-2")
	t.must(t.AddCode(t.ctx, t.code("lamp-2", "c"), e))
	n := t.log()
	_, _, err := t.RedeemCode(t.ctx, t.redemption("c", "lamp-1"), t.now, t.entry(audit.DeviceEnroll, ""))
	t.wantCode(watchword.Conflict, err)
	equal(t, "entries", t.log(), n)
	_, _, err = t.RedeemCode(t.ctx, t.redemption("c", "fresh"), t.now, t.entry(audit.DeviceEnroll, ""))
	t.must(err) // the code was not spent
	_, err = t.Revoke(t.ctx, tenant, "lamp-2", t.now, e)
	t.must(err)
	t.must(t.AddCode(t.ctx, t.code("lamp-2", "d"), e))
	_, _, err = t.RedeemCode(t.ctx, t.redemption("d", "fresh"), t.now, t.entry(audit.DeviceEnroll, ""))
	t.wantCode(watchword.Conflict, err)
	s, _, err := t.RedeemCode(t.ctx, t.redemption("d", "fresher"), t.now, t.entry(audit.DeviceEnroll, ""))
	t.must(err)
	equal(t, "incarnation", s.Incarnation, 2)
	equal(t, "keys it has or had", len(s.Keys), 4)
	if _, ok := s.SignKey("fresh-sign", t.now); ok {
		t.Fatal("a revoked key came back")
	}
}
