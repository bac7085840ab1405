package mqtt_test

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/mqttstore"
)

// memoryStore is a store that a test can stop, break and copy. It does what storetest says
// of a store.
type memoryStore struct {
	mu       sync.Mutex
	moved    *sync.Cond
	closed   bool // nothing is written until it is open again
	broken   bool
	last     bool          // the next write is the last one
	slow     time.Duration // that messages take to be read
	writes   int
	sessions map[int64]mqttstore.Session
	subs     map[int64]map[string]mqttstore.Subscription
	messages map[int64]mqttstore.Message
	retained map[string]mqttstore.Retained
	wills    map[int64]mqttstore.Will
}

func newMemory() *memoryStore {
	m := &memoryStore{sessions: map[int64]mqttstore.Session{}, subs: map[int64]map[string]mqttstore.Subscription{}, messages: map[int64]mqttstore.Message{}, retained: map[string]mqttstore.Retained{}, wills: map[int64]mqttstore.Will{}}
	m.moved = sync.NewCond(&m.mu)
	return m
}

// freeze has the store write nothing more, and returns what it had at that moment.
func (m *memoryStore) freeze() *memoryStore {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	out := newMemory()
	maps.Copy(out.sessions, m.sessions)
	for id, subs := range m.subs {
		out.subs[id] = maps.Clone(subs)
	}
	maps.Copy(out.messages, m.messages)
	maps.Copy(out.retained, m.retained)
	maps.Copy(out.wills, m.wills)
	return out
}

// block holds every write back until open.
func (m *memoryStore) block() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
}

func (m *memoryStore) unblock() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = false
	m.moved.Broadcast()
}

// fail makes every write fail from now on, those that are held back too.
func (m *memoryStore) fail(yes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken, m.closed = yes, false
	m.moved.Broadcast()
}

func (m *memoryStore) waiting() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.messages)
}

func (m *memoryStore) Sessions(_ context.Context, session func(mqttstore.Session) error, message func(mqttstore.Message) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(m.sessions)) {
		s := m.sessions[id]
		for _, name := range slices.Sorted(maps.Keys(m.subs[id])) {
			s.Subscriptions = append(s.Subscriptions, m.subs[id][name])
		}
		if err := session(s); err != nil {
			return err
		}
	}
	for _, id := range slices.Sorted(maps.Keys(m.messages)) {
		x := m.messages[id]
		x.Size, x.Packet = len(x.Packet), nil
		if err := message(x); err != nil {
			return err
		}
	}
	return nil
}

func (m *memoryStore) RetainedMessages(_ context.Context, message func(mqttstore.Retained) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range slices.SortedFunc(maps.Values(m.retained), func(a, b mqttstore.Retained) int { return cmp.Compare(a.Topic, b.Topic) }) {
		if err := message(r); err != nil {
			return err
		}
	}
	return nil
}

func (m *memoryStore) Wills(_ context.Context, will func(mqttstore.Will) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(m.wills)) {
		if err := will(m.wills[id]); err != nil {
			return err
		}
	}
	return nil
}

func (m *memoryStore) Messages(_ context.Context, ids []int64) (out []mqttstore.Message, err error) {
	m.mu.Lock()
	slow := m.slow
	m.mu.Unlock()
	time.Sleep(slow)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken {
		return nil, watchword.Refuse(watchword.Unavailable, "broken")
	}
	for _, id := range ids {
		if x, ok := m.messages[id]; ok {
			out = append(out, x)
		}
	}
	return out, nil
}

func (m *memoryStore) WriteMQTT(_ context.Context, c mqttstore.Changes) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.closed {
		m.moved.Wait()
	}
	if m.broken {
		return watchword.Refuse(watchword.Unavailable, "broken")
	}
	m.writes++
	m.broken = m.last
	for _, id := range c.DeletedSessions {
		delete(m.sessions, id)
		delete(m.subs, id)
	}
	for _, s := range c.Sessions {
		m.sessions[s.ID] = s
	}
	for _, f := range c.Unsubscribed {
		delete(m.subs[f.Session], f.Filter)
	}
	for _, f := range c.Subscribed {
		if m.subs[f.Session] == nil {
			m.subs[f.Session] = map[string]mqttstore.Subscription{}
		}
		m.subs[f.Session][f.Filter] = f.Subscription
	}
	for _, p := range c.Progress {
		if s, ok := m.sessions[p.ID]; ok {
			s.Progress = p.Progress
			m.sessions[p.ID] = s
		}
	}
	for _, x := range c.Messages {
		if _, taken := m.messages[x.ID]; taken {
			return watchword.Refuse(watchword.Internal, "a number twice")
		}
		x.Packet, x.Receivers = bytes.Clone(x.Packet), bytes.Clone(x.Receivers)
		m.messages[x.ID] = x
	}
	for _, id := range c.DeletedMessages {
		delete(m.messages, id)
	}
	for _, r := range c.Retained {
		if r.Packet == nil {
			delete(m.retained, r.Topic)
			continue
		}
		m.retained[r.Topic] = r
	}
	for _, w := range c.Wills {
		if m.wills[w.ID] = w; w.Bytes == nil {
			delete(m.wills, w.ID)
		}
	}
	return nil
}
