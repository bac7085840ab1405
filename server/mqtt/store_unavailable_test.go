package mqtt_test

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqtt"
	"github.com/watchword-iot/watchword/server/session"
)

// failingDirectory cannot say anything of most while it is bad.
type failingDirectory struct {
	*testServer
	bad  atomic.Bool
	good atomic.Int64               // answers until it is bad, where it is set
	slow atomic.Pointer[slowAnswer] // about the subject "slow"
}

// slowAnswer is one that is not given before goOn is closed.
type slowAnswer struct{ asked, goOn chan struct{} }

func (b *failingDirectory) Refresh(context.Context, watchword.TenantID, watchword.SubjectID, string, watchword.KeyID) error {
	return nil
}

func (b *failingDirectory) Principal(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (*session.Principal, error) {
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
		return nil, watchword.Refuse(watchword.Unavailable, "directory")
	}
	return b.testServer.Principal(ctx, t, id)
}

// withFailingDirectory has the engine ask a directory that may fail.
func (srv *testServer) withFailingDirectory() *failingDirectory {
	srv.t.Helper()
	srv.close()
	r := &failingDirectory{testServer: srv}
	srv.guard = session.NewGuard(r, session.GuardOptions{})
	srv.broker = mqtt.New(mqtt.Dependencies{Auth: srv, Guard: srv.guard, Bus: srv.bus, Store: srv.store}, mqtt.Options{KeepAlive: 18 * time.Hour})
	if err := srv.broker.Restore(srv.t.Context()); err != nil {
		srv.t.Fatal(err)
	}
	return r
}

func TestBacklogWaitsWhileStoreIsUnavailable(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		r := srv.withFailingDirectory()
		c := srv.connect(packet.V5, "sub", srv.token("sub", time.Hour), persistentSession)
		c.subscribe(1, "a")
		r.bad.Store(true)
		c.closeAbruptly()
		synctest.Wait()
		r.bad.Store(false)
		time.Sleep(5 * time.Minute)
		if r := srv.device("pub").publish(1, "a", "x"); r != packet.Success {
			t.Errorf("%#x", r)
		}
		c = srv.reconnect(packet.V5, "sub")
		c.wantMessage("a", "x")
	})
}

func TestOfflineSessionExpiresWithoutStore(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		r := srv.withFailingDirectory()
		c := srv.connect(packet.V5, "w", srv.token("w", time.Hour), delayedWill(100000))
		r.bad.Store(true)
		c.closeAbruptly()
		synctest.Wait()
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if s := srv.broker.Stats(); s.PersistentSessions != 0 {
			t.Errorf("%d sessions are left", s.PersistentSessions)
		}
	})
}

// The right to a will was removed; whether it was given again cannot be read at the end.
func TestWillNeedsCurrentAuthority(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		r := srv.withFailingDirectory()
		subscriber := srv.connect(packet.V5, "ear", srv.token("ear", 24*time.Hour))
		subscriber.subscribe(1, "will")
		c := srv.connect(packet.V5, "w", srv.token("w", time.Hour), delayedWill(100000))
		c.closeAbruptly()
		synctest.Wait()
		r.bad.Store(true)
		srv.policy(`publish = ["x"]`, `subscribe = ["#"]`)
		time.Sleep(2 * time.Hour)
		subscriber.wantNothing()
	})
}

// A connection is lost, and before its will is published its session ends: its client has
// a minute from there. Without a bubble, since the will waits for a lock.
func TestASessionThatEndsBeforeTheWillIsPublished(t *testing.T) {
	srv := newTestServer(t, mqtt.Options{})
	defer srv.close()
	r := srv.withFailingDirectory()
	subscriber, lamp := srv.device("ear"), srv.device("lamp", withWill)
	subscriber.subscribe(1, "will")
	srv.device("slow")
	asked, goOn := make(chan struct{}), make(chan struct{})
	r.slow.Store(&slowAnswer{asked, goOn})
	go srv.changed(watchword.SubjectChanged, "slow") // the will waits for it
	testwait.For(t, "the read of the authority", asked)
	lamp.closeAbruptly()
	await(t, "the end of the connection", func() bool { return len(srv.broker.SessionStates(watchword.DefaultTenant, "lamp")) == 0 })
	srv.closeSession("lamp")
	close(goOn)
	await(t, "the time of the will in the store", func() bool {
		if len(subscriber.got) > 0 {
			t.Fatal("the will came at once")
		}
		srv.store.mu.Lock()
		defer srv.store.mu.Unlock()
		for _, w := range srv.store.wills {
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
