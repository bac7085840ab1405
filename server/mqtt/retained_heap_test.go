package mqtt

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/mqttstore"
)

// discardingStore is a store that forgets all at once: what is there besides is the engine's.
type discardingStore struct{ Store }

func (discardingStore) WriteMQTT(context.Context, mqttstore.Changes) error { return nil }

// What waits for sessions that are away takes no more memory than is counted, however small
// the messages are: beside that they are in the store.
func TestBacklogMemoryIsCharged(t *testing.T) {
	for name, shape := range map[string]struct {
		sessions, each int  // of sessions, messages for each
		all            bool // each message is for all of them
		qos            byte
		ids            int // subscription identifiers
		payload        int
	}{
		"small, each for one":            {20, 5000, false, 1, 0, 1},
		"QoS 2":                          {20, 5000, false, 2, 0, 1},
		"few in each":                    {5000, 10, false, 1, 0, 1},
		"for all":                        {20, 5000, true, 1, 0, 1},
		"with a subscription identifier": {20, 3000, false, 1, 1, 1},
		"with many":                      {10, 1000, false, 1, 50, 1},
		"middling":                       {20, 2000, false, 1, 0, 100},
	} {
		t.Run(name, func(t *testing.T) {
			b := &Broker{options: Options{QueueMessages: 10_000, QueueBytes: 1 << 30, OfflineBytes: 1 << 40, Now: time.Now}}
			b.committer = newCommitter(&b.options, discardingStore{})
			b.offlineQuota, b.queueQuota, b.connectionQuota = newOfflineQuota(&b.options), newQueueQuota(&b.options), newConnectionQuota(&b.options)
			tn := &tenant{id: watchword.DefaultTenant, clients: map[string]*sessionState{}}
			sessions := make([]*sessionState, shape.sessions)
			subs := make([][]*bus.Subscription, shape.sessions)
			for i := range sessions {
				st := &sessionState{broker: b, tenant: tn, number: int64(i + 1), owner: owner{watchword.SubjectID(fmt.Sprint("lamp-", i)), 1}, persistent: &persistent{}}
				for n := range max(shape.ids, 1) {
					s := newSubscription(st, "a/b", "a/b")
					s.qos = 2
					if shape.ids > 0 {
						s.identifier = uint32(n + 1)
					}
					subs[i] = append(subs[i], &s.Subscription)
				}
				sessions[i] = st
			}
			before := liveHeap()
			offer := func(to ...int) {
				m := &message{topic: strings.Clone("a/b"), payload: make([]byte, shape.payload), qos: shape.qos, props: &packet.Properties{}}
				var o bus.Result
				for _, i := range to {
					sessions[i].deliver(m, &o, nil, subs[i]...)
				}
				if o.Err != nil || o.Receivers != len(to) {
					t.Fatal(o.Err)
				}
				b.commitOutcome(&o, nil, nil)
				if b.committer.nextMessageID%500 == 0 && !b.committer.writeOnce() {
					t.Fatal("not written")
				}
			}
			everybody := make([]int, len(sessions))
			for i := range everybody {
				everybody[i] = i
			}
			for range shape.each {
				if shape.all {
					offer(everybody...)
					continue
				}
				for i := range sessions {
					offer(i)
				}
			}
			b.committer.writeOnce()
			b.committer.writeOnce() // what a commit has written it does not hold
			var counted int64
			for _, st := range sessions {
				counted += st.offlineBytes
			}
			used, n := liveHeap()-before, int64(shape.sessions*shape.each)
			t.Logf("%d bytes for each message and session, %d counted", used/n, counted/n)
			if used > counted+counted/4 {
				t.Errorf("%.2f times what is counted", float64(used)/float64(counted))
			}
			for _, st := range sessions {
				st.dropPersistentState()
			}
			b.committer.writeOnce()
			b.committer.writeOnce()
			if left := liveHeap() - before; left > used/10+64<<10 {
				t.Errorf("%d bytes of %d are left when the sessions have ended", left, used)
			}
			if n := b.offlineQuota.Total(); n != 0 {
				t.Errorf("%d bytes are charged for nothing", n)
			}
			runtime.KeepAlive(sessions)
		})
	}
}
