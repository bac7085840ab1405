package mqtt_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqtt"
	"github.com/watchword-iot/watchword/server/policy"
)

// referenceClient is the standard's answer to the bytes that a client sends after CONNACK: the responses, in order, the
// messages that others receive, and whether it is disconnected.
type referenceClient struct {
	v       packet.Version
	answers []string // all but PUBREL, which hangs on what the client is sent
	heard   []string
	ended   bool
	reason  packet.Reason // of a DISCONNECT of the server; Success where it says none
	recs    int           // PUBRECs from the client: each may be answered with one PUBREL

	aliases map[uint32]string
	open    map[uint16]bool // QoS 2, not released
	given   map[string]int  // messages of the client that it may receive itself
}

// errOutsideModel is for what is the business of other tests: topics of the server's own.
var errOutsideModel = errors.New("beyond this model")

const packetBytes = 2048 // the longest packet of these tests

func referenceRun(v packet.Version, data []byte) (*referenceClient, error) {
	j := &referenceClient{v: v, aliases: map[uint32]string{}, open: map[uint16]bool{}, given: map[string]int{}}
	for !j.ended {
		first, body, n, err := packet.Frame(data, packetBytes)
		if err != nil {
			j.end(err)
			break
		}
		if n == 0 {
			break
		}
		data = data[n:]
		if packet.Type(first>>4) == packet.CONNECT {
			j.wrong(packet.ProtocolError) // a second one, whatever it says
			break
		}
		p, err := packet.Parse(first, body, v)
		if err != nil {
			j.end(err)
			break
		}
		if err := j.packet(p); err != nil {
			return nil, err
		}
	}
	return j, nil
}

func (j *referenceClient) end(err error) {
	j.ended = true
	if e, ok := errors.AsType[*packet.Error](err); ok && j.v == packet.V5 {
		j.reason = e.Reason
	}
}

func (j *referenceClient) wrong(r packet.Reason) { j.end(&packet.Error{Reason: r}) }

func (j *referenceClient) say(kind packet.Type, id uint16, r packet.Reason) {
	j.answers = append(j.answers, fmt.Sprintf("%s %d %#x", kind, id, byte(r)))
}

func (j *referenceClient) packet(p packet.Packet) error {
	switch p := p.(type) {
	case *packet.Publish:
		return j.publish(p)
	case *packet.Ack:
		switch p.Kind {
		case packet.PUBREC:
			j.recs++
		case packet.PUBREL:
			r := packet.Success
			if !j.open[p.ID] && j.v == packet.V5 {
				r = packet.PacketIdentifierNotFound
			}
			delete(j.open, p.ID)
			j.say(packet.PUBCOMP, p.ID, r)
		}
	case *packet.Subscribe:
		for _, f := range p.Filters {
			if strings.Contains(f.Topic, "$") && !strings.HasPrefix(f.Topic, "$share/") || strings.Contains(f.Topic, "devices") {
				return errOutsideModel
			}
		}
		j.answers = append(j.answers, fmt.Sprintf("SUBACK %d of %d", p.ID, len(p.Filters)))
	case *packet.Unsubscribe:
		j.answers = append(j.answers, fmt.Sprintf("UNSUBACK %d of %d", p.ID, len(p.Filters)))
	case *packet.Ping:
		if p.Response {
			j.wrong(packet.ProtocolError)
			return nil
		}
		j.answers = append(j.answers, "PINGRESP")
	case *packet.Disconnect:
		n, ok := p.Properties.Number(packet.SessionExpiryInterval)
		if ok && n > 0 {
			j.wrong(packet.ProtocolError) // CONNECT had none
			return nil
		}
		j.ended = true
	case *packet.Auth:
		return errOutsideModel // see ace_test.go
	default:
		j.wrong(packet.ProtocolError)
	}
	return nil
}

func (j *referenceClient) publish(p *packet.Publish) error {
	if len(p.Properties.Subscriptions) > 0 {
		j.wrong(packet.ProtocolError)
		return nil
	}
	if n, ok := p.Properties.Number(packet.TopicAlias); ok {
		if p.Topic != "" && n <= 64 {
			j.aliases[n] = p.Topic
		} else if n <= 64 {
			p.Topic = j.aliases[n]
		}
		switch {
		case n > 64:
			j.wrong(packet.TopicAliasInvalid)
			return nil
		case p.Topic == "":
			j.wrong(packet.ProtocolError)
			return nil
		}
	}
	if strings.HasPrefix(p.Topic, "$") || strings.HasPrefix(p.Topic, "devices") {
		return errOutsideModel
	}
	if p.QoS == 2 && j.open[p.ID] {
		j.say(packet.PUBREC, p.ID, packet.Success)
		return nil
	}
	if p.QoS > 0 && len(j.open) >= mqtt.ReceiveMaximum {
		if j.v == packet.V311 && p.QoS == 1 {
			return errOutsideModel
		}
		j.wrong(packet.ReceiveMaximumExceeded)
		return nil
	}
	if policy.CheckTopic(p.Topic) != nil {
		switch {
		case j.v == packet.V311:
			j.wrong(packet.TopicNameInvalid)
		case p.QoS > 0:
			j.say(packet.PUBACK+packet.Type(p.QoS-1), p.ID, packet.TopicNameInvalid)
		}
		return nil
	}
	switch p.QoS {
	case 1:
		j.say(packet.PUBACK, p.ID, packet.Success)
	case 2:
		j.say(packet.PUBREC, p.ID, packet.Success)
		j.open[p.ID] = true
	}
	m := p.Topic + " " + string(p.Payload)
	j.heard = append(j.heard, m)
	j.given[m]++
	return nil
}

// runByteSession sends data after CONNACK, in pieces, and compares the result with the model. It returns false if the model
// does not cover the data.
func runByteSession(t *testing.T, v packet.Version, data []byte, piece int) bool {
	want, err := referenceRun(v, data)
	if err != nil {
		return false
	}
	srv := newTestServer(t, mqtt.Options{PacketBytes: packetBytes, QueueMessages: 1 << 20, QueueBytes: 1 << 30, ControlCharacters: true})
	defer srv.close()
	subscriber := srv.device("ear")
	subscriber.subscribe(0, "#")
	c := srv.connect(v, "fuzz", srv.token("fuzz", time.Hour))
	for piece := range slices.Chunk(data, piece) {
		if _, err := c.nc.Write(piece); err != nil {
			break // it was ended
		}
	}
	synctest.Wait()
	time.Sleep(10 * time.Second) // of a clock that is not real: for the farewell
	synctest.Wait()
	var got []string
	var bye *packet.Disconnect
	rels := 0
	over := false
	for n := len(c.got); n >= 0; n-- {
		var p packet.Packet
		select {
		case q, ok := <-c.got:
			if !ok {
				over = true
				continue
			}
			p = q
		default:
			continue
		}
		switch p := p.(type) {
		case *packet.Publish:
			m := p.Topic + " " + string(p.Payload)
			if _, mine := want.given[m]; p.Topic != "" && !mine {
				t.Errorf("it receives %q, which no client sent", m)
			}
		case *packet.Ack:
			if p.Kind == packet.PUBREL {
				rels++
				continue
			}
			got = append(got, fmt.Sprintf("%s %d %#x", p.Kind, p.ID, byte(p.Reason)))
		case *packet.Suback:
			got = append(got, fmt.Sprintf("SUBACK %d of %d", p.ID, len(p.Codes)))
		case *packet.Unsuback:
			codes := len(p.Codes)
			if v == packet.V311 { // it has none
				codes = unsubscribed(data, p.ID)
			}
			got = append(got, fmt.Sprintf("UNSUBACK %d of %d", p.ID, codes))
		case *packet.Ping:
			got = append(got, "PINGRESP")
		case *packet.Disconnect:
			bye = p
		default:
			t.Errorf("the server sent %+v", p)
		}
	}
	if want.ended && len(got) < len(want.answers) { // what waited for the disk is not said any more: it will be asked again
		want.answers = want.answers[:len(got)]
	}
	if !slices.Equal(got, want.answers) {
		t.Errorf("answers\n%q, want\n%q", got, want.answers)
	}
	if rels > want.recs {
		t.Errorf("%d PUBREL for %d PUBREC", rels, want.recs)
	}
	if over != want.ended {
		t.Errorf("ended %v, want %v", over, want.ended)
	}
	if reason := want.reason; (bye != nil) != (reason != 0) || bye != nil && bye.Reason != reason {
		t.Errorf("DISCONNECT %+v, want %#x", bye, reason)
	}
	var received []string
	for len(subscriber.got) > 0 {
		p := (<-subscriber.got).(*packet.Publish)
		received = append(received, p.Topic+" "+string(p.Payload))
	}
	if !slices.Equal(received, want.heard) {
		t.Errorf("others received\n%q, want\n%q", received, want.heard)
	}
	c.closeAbruptly()
	synctest.Wait()
	if s := srv.broker.Stats(); s.Connections != 1 || s.Subscriptions != 1 {
		t.Errorf("%d connections and %d subscriptions are left, want those of the ear", s.Connections, s.Subscriptions)
	}
	return true
}

// unsubscribed returns how many filters an UNSUBSCRIBE had.
func unsubscribed(data []byte, id uint16) int {
	for {
		first, body, n, err := packet.Frame(data, packetBytes)
		if n == 0 || err != nil {
			return -1
		}
		if p, err := packet.Parse(first, body, packet.V311); err == nil {
			if u, ok := p.(*packet.Unsubscribe); ok && u.ID == id {
				return len(u.Filters)
			}
		}
		data = data[n:]
	}
}

// somePackets makes packets as clients send them, some not quite, over few names and
// identifiers, so that they meet.
func somePackets(r *rand.Rand, v packet.Version, count int) (out []byte) {
	topics := []string{"a", "a/b", "b", "a/+", "", "x/y/z", "a/b"}
	filters := []string{"a", "a/#", "+/b", "#", "$share/g/a", "a/#/b", "x/+/z"}
	id := func() uint16 { return uint16(r.IntN(6)) + 1 }
	for range count {
		var p packet.Packet
		switch n := r.IntN(100); {
		case n < 50:
			m := &packet.Publish{Topic: topics[r.IntN(len(topics))], QoS: byte(r.IntN(3)), Retain: r.IntN(8) == 0, Payload: fmt.Appendf(nil, "%d", r.IntN(1000))}
			if m.QoS > 0 {
				m.ID, m.Dup = id(), r.IntN(4) == 0
			}
			if v == packet.V5 && r.IntN(3) == 0 {
				m.Properties.SetNumber(packet.TopicAlias, uint32(r.IntN(4)+1))
				if r.IntN(40) == 0 {
					m.Properties.SetNumber(packet.TopicAlias, 65)
				}
			}
			if m.Topic == "" && r.IntN(3) > 0 {
				m.Topic = "a"
			}
			p = m
		case n < 62:
			p = &packet.Ack{Kind: packet.PUBREL, ID: id()}
		case n < 70:
			p = &packet.Ack{Kind: []packet.Type{packet.PUBACK, packet.PUBREC, packet.PUBCOMP}[r.IntN(3)], ID: id()}
		case n < 82:
			s := &packet.Subscribe{ID: id()}
			for range 1 + r.IntN(3) {
				s.Filters = append(s.Filters, packet.Filter{Topic: filters[r.IntN(len(filters))], QoS: byte(r.IntN(3))})
			}
			p = s
		case n < 88:
			p = &packet.Unsubscribe{ID: id(), Filters: []string{filters[r.IntN(len(filters))], "b"}}
		case n < 97:
			p = &packet.Ping{}
		case n < 98:
			p = &packet.Disconnect{}
		case n < 99:
			p = &packet.Ping{Response: true}
		default:
			p = hello(v, "fuzz", "x")
		}
		b := packet.Append(nil, p, v)
		switch r.IntN(60) {
		case 0:
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		case 1:
			b = b[:r.IntN(len(b))]
		case 2:
			b = slices.Insert(b, r.IntN(len(b)), byte(r.IntN(256)))
		}
		out = append(out, b...)
	}
	return out
}

// Whatever bytes a client sends, the server does what the standard says of them.
func TestByteSessionMatchesReference(t *testing.T) {
	judged := 0
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 3))
		v := packet.V311 + packet.Version(r.IntN(2))
		data := somePackets(r, v, 1+r.IntN(60))
		piece := 1 + r.IntN(len(data)+1)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if runByteSession(t, v, data, piece) {
					judged++
				}
			})
		})
	}
	if judged < 280 {
		t.Errorf("%d of 300 sessions were judged: the others prove nothing", judged)
	}
}

func FuzzByteSession(f *testing.F) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 4))
		v := packet.V311 + packet.Version(r.IntN(2))
		f.Add(v == packet.V5, byte(r.IntN(64)), somePackets(r, v, 12))
	}
	f.Fuzz(func(t *testing.T, five bool, piece byte, data []byte) {
		if len(data) > 4096 {
			return
		}
		v := packet.V311
		if five {
			v = packet.V5
		}
		synctest.Test(t, func(t *testing.T) { runByteSession(t, v, bytes.Clone(data), int(piece)+1) })
	})
}
