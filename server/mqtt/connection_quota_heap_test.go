package mqtt

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
)

// What is counted of aliases and identifiers is what they take of memory, within a quarter.
func TestConnectionMemoryIsChargedExactly(t *testing.T) {
	b := &Broker{}
	b.connectionQuota = newConnectionQuota(&Options{})
	tn := &tenant{id: watchword.DefaultTenant, clients: map[string]*sessionState{}}
	for name, shape := range map[string]struct {
		each int
		do   func(c *conn, i int)
	}{
		"aliases of a client, long topics":  {64, func(c *conn, i int) { _ = c.setInboundAlias(i+1, fmt.Sprint(strings.Repeat("x", 900), i)) }},
		"aliases of a client, short topics": {64, func(c *conn, i int) { _ = c.setInboundAlias(i+1, fmt.Sprint("devices/lamp/events/", i)) }},
		"aliases to a client":               {64, func(c *conn, i int) { c.assignAlias(fmt.Sprint("devices/lamp/events/", i)) }},
		"identifiers":                       {256, func(c *conn, i int) { _ = c.session.reserveReceived(true); c.session.addReceived(uint16(i*7+1), nil) }},
		"many identifiers":                  {1024, func(c *conn, i int) { _ = c.session.reserveReceived(true); c.session.addReceived(uint16(i*7+1), nil) }},
	} {
		t.Run(name, func(t *testing.T) {
			const conns = 300
			all := make([]*conn, conns)
			for i := range all {
				c := &conn{broker: b, session: &sessionState{broker: b, tenant: tn, owner: owner{watchword.SubjectID(fmt.Sprint("lamp-", i)), 1}}}
				c.out.maxOutboundAliases = maxAliases
				all[i] = c
			}
			before, counted := liveHeap(), 0
			for _, c := range all {
				for i := range shape.each {
					shape.do(c, i)
				}
				counted += c.out.aliasBytes + c.session.receivedPeak*receivedEntryBytes
			}
			used := int(liveHeap() - before)
			if r := float64(used) / float64(counted); r < 0.8 || r > 1.25 {
				t.Errorf("%d bytes of each, %d counted: %.2f times", used/conns, counted/conns, r)
			} else {
				t.Logf("%d bytes of each, %d counted", used/conns, counted/conns)
			}
			if n := int(b.connectionQuota.Total()); n < counted-conns*connectionFreeBytes || n > counted {
				t.Errorf("%d bytes are charged of %d", n, counted)
			}
			for _, c := range all {
				c.forgetAliases()
				c.session.removeAllReceived()
			}
			if n := b.connectionQuota.Total(); n != 0 {
				t.Errorf("%d bytes are charged for nothing", n)
			}
			if left := int(liveHeap() - before); left > used/10+64<<10 {
				t.Errorf("%d bytes of %d are left when all is forgotten", left, used)
			}
			runtime.KeepAlive(all)
		})
	}
}

// Sessions and identifiers name the commit that they were written with for as long as they
// are there: it must not keep what it wrote.
func TestEndedCommitReleasesMemory(t *testing.T) {
	for _, state := range []int32{commitWritten, commitFailed} {
		j := newCommitter(&Options{}, nil)
		k := &storedMessage{size: 1}
		c := j.open
		c.messages, c.deletedMessages, c.clients, c.deletedSessions = []*storedMessage{k}, []int64{1}, []*sessionState{{}}, []int64{2}
		c.retained, c.wills, c.waiters = map[retainedKey]struct{}{{}: {}}, map[*will]struct{}{{}: {}}, []*conn{{}}
		if waiters, _ := j.end(c, c.messages, state); len(waiters) != 1 {
			t.Errorf("%d are told of the end", len(waiters))
		}
		if !c.empty() {
			t.Errorf("it holds %+v", c)
		}
	}
}
