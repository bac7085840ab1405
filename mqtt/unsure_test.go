package mqtt_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/policy"
	"github.com/watchword-iot/watchword/session"
)

// badRoll cannot say anything of most while it is bad.
type badRoll struct {
	*house
	bad atomic.Bool
}

func (b *badRoll) Today(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (*watchword.Subject, *policy.Grant, error) {
	if b.bad.Load() && id != "pub" && id != "ear" {
		return nil, nil, watchword.Refuse(watchword.Unavailable, "roll")
	}
	return b.house.Today(ctx, t, id)
}

// onABadRoll has the engine ask a roll that may be bad.
func (h *house) onABadRoll() *badRoll {
	h.t.Helper()
	h.close()
	r := &badRoll{house: h}
	h.guard = session.NewGuard(r, session.GuardOptions{})
	h.broker = mqtt.New(mqtt.Parts{Office: h, Guard: h.guard, Hub: h.hub, Store: h.store, Options: mqtt.Options{KeepAlive: 18 * time.Hour}})
	if err := h.broker.Load(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	return r
}

func TestWhereNobodyCanSayWhatWaitsGoesOnToWait(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		r := h.onABadRoll()
		c := h.connect(packet.V5, "sub", h.token("sub", time.Hour), lasts)
		c.subscribe(1, "a")
		r.bad.Store(true)
		c.vanish()
		synctest.Wait()
		r.bad.Store(false)
		time.Sleep(5 * time.Minute)
		if r := h.device("pub").publish(1, "a", "x"); r != packet.Success {
			t.Errorf("%#x", r)
		}
		c = h.back(packet.V5, "sub")
		c.hears("a", "x")
	})
}

func TestASessionEndsAlsoWhereNobodyCanSay(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		r := h.onABadRoll()
		c := h.connect(packet.V5, "w", h.token("w", time.Hour), wills(100000))
		r.bad.Store(true)
		c.vanish()
		synctest.Wait()
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if s := h.broker.Stats(); s.Lasting != 0 {
			t.Errorf("%d sessions are left", s.Lasting)
		}
	})
}

// The right to a will was taken; whether it is back nobody can say at the end.
func TestNoWillUnderAnOldAuthority(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		r := h.onABadRoll()
		ear := h.connect(packet.V5, "ear", h.token("ear", 24*time.Hour))
		ear.subscribe(1, "will")
		c := h.connect(packet.V5, "w", h.token("w", time.Hour), wills(100000))
		c.vanish()
		synctest.Wait()
		r.bad.Store(true)
		h.policy(`publish = ["x"]`, `subscribe = ["#"]`)
		time.Sleep(2 * time.Hour)
		ear.silent()
	})
}
