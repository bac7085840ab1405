package hostile

import (
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/token"
)

type watchwordCommand = token.Command

// forged returns commands that no device may execute, each by its own function.
func (s *Server) forged(nonce string) (out []string) {
	k, err := jose.GenerateKey(jose.P256)
	if err != nil {
		return nil
	}
	unknown, err := k.Signer()
	if err != nil {
		return nil
	}
	n := int64(Forbidden)
	add := func(by *jose.Signer, edit func(*watchwordCommand)) {
		n++
		jwe, err := s.Seal(by, n, func(c *watchwordCommand) {
			c.Nonce = nonce
			if edit != nil {
				edit(c)
			}
		})
		if err == nil {
			out = append(out, jwe)
		}
	}
	now := time.Now()
	add(unknown, nil)
	add(s.keys.issuer, nil)
	add(s.keys.root, nil)
	add(s.keys.time, nil)
	add(nil, func(c *watchwordCommand) { c.Device = "device-2" })
	add(nil, func(c *watchwordCommand) { c.Issuer = "https://other.example" })
	add(nil, func(c *watchwordCommand) { c.Epoch = epoch + 1 })
	add(nil, func(c *watchwordCommand) { c.Issued, c.Expires = now.Add(-10*time.Minute), now.Add(-5*time.Minute) })
	add(nil, func(c *watchwordCommand) { c.Issued, c.Expires = now.Add(time.Hour), now.Add(2*time.Hour) })
	add(nil, func(c *watchwordCommand) { c.Expires = now.Add(48 * time.Hour) })
	add(nil, func(c *watchwordCommand) { c.Seq = 0 })
	add(nil, func(c *watchwordCommand) { c.Args = []byte(`[7]`) })
	add(nil, func(c *watchwordCommand) { c.Args = []byte(`{"n":1000099,"n":1000098}`) })
	// Signed correctly, but not encrypted, encrypted as another type, or for another device.
	command := token.Command{
		Issuer: Issuer, Device: DeviceID, ID: newCommandID(now), Epoch: epoch, Seq: s.last() + 1, Function: Function, Args: []byte(`{"n":1000097}`),
		By: "operator", Issued: now, Expires: now.Add(time.Hour), Nonce: nonce,
	}
	if jws, err := token.SignCommand(s.keys.command, command); err == nil {
		out = append(out, jws)
		s.mu.Lock()
		to := s.seal
		s.mu.Unlock()
		if jwe, err := jose.Encrypt(to, "text/plain", []byte(jws)); err == nil {
			out = append(out, jwe)
		}
		if other, err := jose.GenerateKey(jose.P256); err == nil {
			if jwe, err := jose.Encrypt(other.Public(), "JWT", []byte(jws)); err == nil {
				out = append(out, jwe)
			}
		}
		if jwe, err := jose.Encrypt(to, "JWT", []byte(jws)); err == nil {
			b := []byte(jwe)
			b[len(b)-30] ^= 1
			out = append(out, string(b), jwe[:len(jwe)/2])
		}
		if jwe, err := jose.Encrypt(to, "JWT", []byte(`{"cmd":"act","args":{"n":1000096}}`)); err == nil {
			out = append(out, jwe)
		}
	}
	return out
}

// pending signs and encrypts the device's pending commands.
func (m *Session) pending() (out []string) {
	for _, o := range m.Server.next() {
		if jwe, err := m.Server.sealed(o, m.Nonce()); err == nil {
			out = append(out, jwe)
		}
	}
	return out
}

// commandCases are commands that must not be executed, or not twice. HTTPS behaves well where MQTT
// does not.
func commandCases() []Case {
	var mu sync.Mutex
	var first []string // two commands in the wrong order, made once
	reordered := func(s *Server) []string {
		mu.Lock()
		defer mu.Unlock()
		if first == nil {
			later, err1 := s.Seal(nil, Forbidden/2, nil) // the highest sequence number
			earlier, err2 := s.Seal(nil, Forbidden+1, func(c *watchwordCommand) { c.Seq-- })
			if err1 == nil && err2 == nil {
				first = []string{later, earlier}
			}
			s.skipNumbers(1)
		}
		return first
	}
	var taken []string // all commands that were sent, to be replayed
	replayed := func(s *Server, nonce string) []string {
		mu.Lock()
		defer mu.Unlock()
		for _, o := range s.next() {
			if jwe, err := s.sealed(o, nonce); err == nil {
				taken = append(taken, jwe)
			}
		}
		return slices.Clone(taken)
	}
	each := func(edit func(n int, p *packet.Publish), jwes func(m *Session) []string) func(*Session) {
		return then(func(m *Session) error {
			for n, jwe := range jwes(m) {
				p := m.Command(jwe)
				if edit != nil {
					edit(n, p)
				}
				if err := m.Write(p); err != nil {
					return err
				}
			}
			return nil
		})
	}
	times := func(n int) func(m *Session) []string {
		return func(m *Session) (out []string) {
			jwes := m.pending()
			for range n {
				out = append(out, jwes...)
			}
			return out
		}
	}
	polled := func(f func(s *Server, r *http.Request) []string) func(*Server, http.ResponseWriter, *http.Request) bool {
		return func(s *Server, w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != pathCommands {
				return false
			}
			commands(w, f(s, r)...)
			return true
		}
	}
	forged := func(m *Session) []string { return m.Server.forged(m.Nonce()) }
	return []Case{
		{Name: "commands that are forged", Session: each(nil, forged)},
		{Name: "commands that are forged, one a connection", Session: func(m *Session) {
			if !m.Accept() || !m.ServeUntilSubscribed() {
				return
			}
			all := forged(m)
			mu.Lock()
			jwe := all[len(first)%len(all)]
			first = append(first, jwe)
			mu.Unlock()
			m.ServeWith(func(m *Session) error { return m.Write(m.Command(jwe)) })
		}},
		{Name: "commands that are forged, by polls", Connection: noMQTT, Request: polled(func(s *Server, r *http.Request) []string {
			return s.forged(r.URL.Query().Get("nonce"))
		})},
		{Name: "every command 20 times", Commands: 3, Session: each(func(n int, p *packet.Publish) { p.Dup = n > 0 }, times(20))},
		{Name: "every command 5 times, by polls", Commands: 3, Connection: noMQTT, Request: polled(func(s *Server, r *http.Request) (out []string) {
			for range 5 {
				out = append(out, replayed(s, r.URL.Query().Get("nonce"))...)
			}
			return out
		})},
		{Name: "every command of before, in each connection", Commands: 3, Session: each(nil, func(m *Session) []string { return replayed(m.Server, m.Nonce()) })},
		{Name: "numbers in the wrong order", Session: each(nil, func(m *Session) []string { return reordered(m.Server) })},
		{Name: "two commands with one packet identifier", Commands: 2, Session: each(func(_ int, p *packet.Publish) { p.ID = 1 }, times(1))},
		{Name: "commands with QoS 0", Commands: 1, Session: each(func(_ int, p *packet.Publish) { p.QoS, p.ID = 0, 0 }, times(2))},
		{Name: "commands with QoS 2", Commands: 1, Session: each(func(_ int, p *packet.Publish) { p.QoS = 2 }, times(2))},
		{Name: "commands that are retained", Commands: 1, Session: each(func(_ int, p *packet.Publish) { p.Retain = true }, times(2))},
		{Name: "commands as configurations", Commands: 1, Session: each(func(_ int, p *packet.Publish) { p.Topic = topicConfig }, times(2))},
		{Name: "a trust bundle of a later epoch with an unknown signer", Request: func(s *Server, w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != pathTrust {
				return false
			}
			own, err := newAuthority(time.Now())
			if err != nil {
				return false
			}
			b, err := own.bundle(9, time.Now(), func(t *token.Trust) { t.Epoch = 9 })
			write(w, "application/jose", []byte(b), err)
			return true
		}, Session: each(nil, func(m *Session) []string {
			jwe, err := m.Server.Seal(nil, Forbidden+1, func(c *watchwordCommand) { c.Epoch = 9 })
			if err != nil {
				return nil
			}
			return []string{jwe}
		})},
	}
}
