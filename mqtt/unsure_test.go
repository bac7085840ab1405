package mqtt_test

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/waiting"
	"github.com/watchword-iot/watchword/mqtt"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/session"
)

// badRoll cannot say anything of most while it is bad.
type badRoll struct {
	*house
	bad  atomic.Bool
	good atomic.Int64               // answers until it is bad, where it is set
	slow atomic.Pointer[slowAnswer] // about the subject "slow"
}

// slowAnswer is one that is not given before goOn is closed.
type slowAnswer struct{ asked, goOn chan struct{} }

func (b *badRoll) Renew(context.Context, watchword.TenantID, watchword.SubjectID, string, watchword.KeyID) error {
	return nil
}

func (b *badRoll) Principal(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (*session.Principal, error) {
	if id == "slow" {
		if s := b.slow.Swap(nil); s != nil {
			close(s.asked)
			<-s.goOn
		}
	}
	if b.good.Load() > 0 && b.good.Add(-1) == 0 {
		b.bad.Store(true)
	}
	if b.bad.Load() && id != "pub" && id != "ear" {
		return nil, watchword.Refuse(watchword.Unavailable, "roll")
	}
	return b.house.Principal(ctx, t, id)
}

// onABadRoll has the engine ask a roll that may be bad.
func (h *house) onABadRoll() *badRoll {
	h.t.Helper()
	h.close()
	r := &badRoll{house: h}
	h.guard = session.NewGuard(r, session.GuardOptions{})
	h.broker = mqtt.New(mqtt.Dependencies{Office: h, Guard: h.guard, Bus: h.bus, Store: h.store}, mqtt.Options{KeepAlive: 18 * time.Hour})
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

// A connection is lost, and before its will is published its session ends: its client has
// a minute from there. Without a bubble, since the will waits for a lock.
func TestASessionThatEndsBeforeTheWillIsPublished(t *testing.T) {
	h := newHouse(t, mqtt.Options{})
	defer h.close()
	r := h.onABadRoll()
	ear, lamp := h.device("ear"), h.device("lamp", withWill)
	ear.subscribe(1, "will")
	h.device("slow")
	asked, goOn := make(chan struct{}), make(chan struct{})
	r.slow.Store(&slowAnswer{asked, goOn})
	go h.guard.SubjectChanged(context.Background(), watchword.DefaultTenant, "slow") // the will waits for it
	waiting.For(t, "the read of the authority", asked)
	lamp.vanish()
	await(t, "the end of the connection", func() bool { return len(h.broker.States(watchword.DefaultTenant, "lamp")) == 0 })
	h.closeSession("lamp")
	close(goOn)
	await(t, "the time of the will in the store", func() bool {
		if len(ear.got) > 0 {
			t.Fatal("the will came at once")
		}
		h.store.mu.Lock()
		defer h.store.mu.Unlock()
		for _, w := range h.store.wills {
			return !w.Due.IsZero()
		}
		return false
	})
}

// await fails where something does not come to be in ten seconds.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
		runtime.Gosched()
	}
}
