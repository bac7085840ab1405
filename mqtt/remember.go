package mqtt

import (
	"github.com/watchword-iot/watchword/internal/quota"
)

// What a connection or a session remembers between packets is counted against its subject:
// its first rememberFree bytes are not, and the rest is in steps, so that hardly a packet
// asks the account.
const (
	rememberFree = 4 << 10
	rememberStep = 4 << 10

	// receivedBytes is what an identifier of QoS 2 takes in the map, which does not shrink.
	receivedBytes = 36
	// fewReceived is how many identifiers fit a map that is kept when it is empty.
	fewReceived = 8
	// heardBytes is what a topic alias of the client takes beside the topic, and sentBytes
	// one of the server.
	heardBytes = 16
	sentBytes  = 48
)

// charged is what of that one connection or session is counted now.
type charged int64

// resize has n bytes remembered from now on. Code: busy, where that is more than before and
// its account has no room, only where it is bounded.
func (c *charged) resize(q *quota.Ledger[quota.Key], k quota.Key, n int, bounded bool) error {
	want := inSteps(int64(n)-rememberFree, rememberStep)
	switch more := want - int64(*c); {
	case more > 0 && bounded:
		if err := q.Take(k, more); err != nil {
			return err
		}
	case more > 0:
		q.Add(k, more)
	case more < 0:
		q.Give(k, -more)
	}
	*c = charged(want)
	return nil
}

// roomForReceived makes room for one more identifier of QoS 2. Code: busy. mu is held.
func (st *sessionState) roomForReceived(bounded bool) error {
	n := len(st.received) + 1
	if n <= st.mostReceived {
		return nil
	}
	err := st.receivedCharged.resize(st.broker.remembers, st.account(), n*receivedBytes, bounded)
	if err == nil {
		st.mostReceived = n
	}
	return err
}

// receive notes that a publish with QoS 2 was taken, with what is on the disk when it may be
// acknowledged; nil: it may be. There is room for it. mu is held.
func (st *sessionState) receive(id uint16, at *commit) {
	if st.received == nil {
		st.received = map[uint16]*commit{}
	}
	st.received[id] = at
}

// receivedIsKept notes that at, with which a publish was taken, is on the disk: nobody needs
// it any more. mu is held.
func (st *sessionState) receivedIsKept(id uint16, at *commit) {
	if was, known := st.received[id]; known && was == at {
		st.received[id] = nil
	}
}

// unreceive forgets an identifier. mu is held.
func (st *sessionState) unreceive(id uint16) {
	delete(st.received, id)
	if len(st.received) == 0 && st.mostReceived > fewReceived {
		st.unreceiveAll()
	}
}

// unreceiveAll forgets them all. mu is held.
func (st *sessionState) unreceiveAll() {
	st.received, st.mostReceived = nil, 0
	if st.receivedCharged > 0 { // else it may have no subject yet
		_ = st.receivedCharged.resize(st.broker.remembers, st.account(), 0, false) // never refused: it shrinks
	}
}

// hear has an alias stand for a topic from now on (MQTT 5.0 §3.3.2.3.4). Code: busy: the
// client may use any alias up to the maximum, so that the connection ends where there is no room.
func (c *conn) hear(alias int, topic string) error {
	if len(c.heard) >= alias && c.heard[alias-1] == topic {
		return nil
	}
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	heard := c.heard
	if len(heard) < alias {
		heard = make([]string, alias)
		copy(heard, c.heard)
	}
	if err := c.rememberMore((len(heard)-len(c.heard))*heardBytes + rounded(topic) - rounded(heard[alias-1])); err != nil {
		return err
	}
	heard[alias-1] = topic
	c.heard = heard
	return nil
}

// rememberMore counts n bytes more of aliases, or less. mu is held.
func (c *conn) rememberMore(n int) error {
	err := c.out.aliasCharged.resize(c.broker.remembers, c.session.account(), c.out.aliasBytes+n, true)
	if err == nil {
		c.out.aliasBytes += n
	}
	return err
}

// forgetAliases is the reader's last word on them: nobody sends on the connection any more.
func (c *conn) forgetAliases() {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	c.heard, c.out.aliases, c.out.aliased = nil, nil, 0
	if c.out.aliasBytes > 0 { // else it may never have come to CONNECT
		_ = c.rememberMore(-c.out.aliasBytes) // never refused: it shrinks
	}
}

// rounded is what the bytes of a text take, which memory rounds up.
func rounded(s string) int { return (len(s) + 15) &^ 15 }
