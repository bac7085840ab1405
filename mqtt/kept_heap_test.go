package mqtt

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/bus"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/shelf"
)

// nowhere is a store that forgets all at once: what is there besides is the engine's.
type nowhere struct{ Store }

func (nowhere) KeepOnShelf(context.Context, shelf.Changes) error { return nil }

// What waits for sessions that are away takes no more memory than is counted, however small
// the messages are: beside that they are in the store.
func TestWhatWaitsTakesNoMoreThanIsCounted(t *testing.T) {
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
			b := &Broker{options: Options{QueueMessages: 10_000, QueueBytes: 1 << 30, KeptBytes: 1 << 40, Now: time.Now}}
			b.journal = newJournal(&b.options, nowhere{}, newRetainQuota(&b.options))
			b.kept, b.queued, b.remembers = newKeptQuota(&b.options), newQueueQuota(&b.options), newMemoryQuota(&b.options)
			w := &world{tenant: watchword.DefaultTenant, clients: map[string]*sessionState{}}
			sessions := make([]*sessionState, shape.sessions)
			subs := make([][]*bus.Subscription, shape.sessions)
			for i := range sessions {
				st := &sessionState{broker: b, world: w, number: int64(i + 1), owner: owner{watchword.SubjectID(fmt.Sprint("lamp-", i)), 1}, lasting: &lasting{}}
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
			before := heap()
			offer := func(to ...int) {
				m := &message{topic: strings.Clone("a/b"), payload: make([]byte, shape.payload), qos: shape.qos, props: &packet.Properties{}}
				var o bus.Result
				for _, i := range to {
					sessions[i].offer(m, &o, nil, subs[i]...)
				}
				if o.Err != nil || o.Receivers != len(to) {
					t.Fatal(o.Err)
				}
				b.settle(&o, nil, nil)
				if b.journal.next%500 == 0 && !b.journal.step() {
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
			b.journal.step()
			b.journal.step() // what a commit has written it does not hold
			var counted int64
			for _, st := range sessions {
				counted += st.kept
			}
			used, n := heap()-before, int64(shape.sessions*shape.each)
			t.Logf("%d bytes for each message and session, %d counted", used/n, counted/n)
			if used > counted+counted/4 {
				t.Errorf("%.2f times what is counted", float64(used)/float64(counted))
			}
			for _, st := range sessions {
				st.forget()
			}
			b.journal.step()
			b.journal.step()
			if left := heap() - before; left > used/10+64<<10 {
				t.Errorf("%d bytes of %d are left when the sessions have ended", left, used)
			}
			if n := b.kept.Total(); n != 0 {
				t.Errorf("%d bytes are charged for nothing", n)
			}
			runtime.KeepAlive(sessions)
		})
	}
}
