package attack_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/token"
)

// goodClients lets some clients do what clients do, so many times each: a token for
// a new assertion, and a request with it. It returns how long each step took.
func (ep *endpointFixture) goodClients(t *testing.T, times int) []time.Duration {
	t.Helper()
	const clients = 3
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	for range clients {
		c := ep.clientAt("127.0.0.1")
		wg.Go(func() {
			for range times {
				raw, err := token.SignAssertion(ep.deviceKey, "lamp-1", ep.ring.Issuer(), time.Now(), time.Minute)
				if err != nil {
					t.Error(err)
					return
				}
				begin := time.Now()
				a, err := ep.sendShot(c, shot{"POST", "/oauth/token", assertionForm(raw).Encode(), http.Header{"Content-Type": form}})
				if err != nil || a.status != 200 {
					t.Errorf("a good assertion: %v %d %s", err, a.status, a.body)
					return
				}
				b, err := ep.sendShot(c, shot{"GET", "/v1/self", "", headers("Authorization", "Bearer "+a.member(t, "access_token"))})
				if err != nil || b.status != 200 {
					t.Errorf("a good token: %v %d %s", err, b.status, b.body)
					return
				}
				mu.Lock()
				took = append(took, time.Since(begin))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(took)
	return took
}

// connectBytes is a whole CONNECT of MQTT 5.
func connectBytes(id, password string) []byte {
	body := append([]byte("\x00\x04MQTT\x05\xc2\x00\x1e\x00"), counted(id)...)
	body = append(append(body, counted("jwt")...), counted(password)...)
	out := []byte{0x10}
	for n := len(body); ; {
		b := byte(n & 0x7f)
		if n >>= 7; n == 0 {
			return append(append(out, b), body...)
		}
		out = append(out, b|0x80)
	}
}

// Thousands of bad signatures from many addresses, over all endpoints, while good
// clients work: each of these is served, in bounded time; memory is bounded; and
// of what was refused nothing is forgotten: it is on record, or counted there.
func TestFloodOfInvalidSignatures(t *testing.T) {
	const times, least = 60, 3000
	ep := newEndpoints(t, time.Now)
	quiet := ep.goodClients(t, times)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)

	bearer := signature(func(b []byte) []byte { b[40] ^= 1; return b })
	var refused, unserved, total atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	enough := make(chan struct{})
	count := func(code watchword.Code) {
		switch code {
		case watchword.Busy, watchword.RateLimited:
			unserved.Add(1)
		default:
			refused.Add(1)
		}
		if total.Add(1) == least {
			close(enough)
		}
	}
	bad := bearer(ep.token)
	conf := anchored(t, ep.device)
	conf.ServerName = "localhost"
	_, port, err := net.SplitHostPort(ep.device.MQTT())
	must(t, err)
	var wg sync.WaitGroup
	for i := range 4 {
		address := "127.0.0." + strconv.Itoa(10+i)
		for range 3 {
			c := ep.clientAt(address)
			wg.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					want, f := watchword.SignatureInvalid, shot{"GET", "/v1/self", "", headers("Authorization", "Bearer "+bad)}
					if n%3 == 0 {
						want, f = watchword.ClientInvalid, shot{"POST", "/oauth/token", assertionForm(bearer(sign(t, ep.deviceKey, token.TypAssertion, ep.assertion()))).Encode(), http.Header{"Content-Type": form}}
					}
					a, err := ep.sendShot(c, f)
					if err != nil || a.code != want && a.code != watchword.Busy {
						t.Errorf("the flood got %v %d %s", err, a.status, a.body)
						return
					}
					count(a.code)
				}
			})
		}
		wg.Go(func() {
			for ctx.Err() == nil {
				code, err := connectOnce(address, port, conf, connectBytes("lamp-1/"+strconv.Itoa(i), bad))
				switch {
				case err != nil:
					t.Error(err)
					return
				case code == 0x87:
					count(watchword.SignatureInvalid)
				case code == 0x97 || code == 0x9f:
					count(watchword.Busy)
				default:
					t.Errorf("CONNACK %#x", code)
					return
				}
			}
		})
	}
	loud := ep.goodClients(t, times)
	select {
	case <-enough:
	case <-t.Context().Done():
	case <-time.After(time.Minute):
		t.Errorf("the flood is a trickle: %d", total.Load())
	}
	stop()
	wg.Wait()
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 48<<20 {
		t.Errorf("memory grew by %d bytes", grown)
	}
	middle, end := func(d []time.Duration) time.Duration { return d[len(d)/2] }, func(d []time.Duration) time.Duration { return d[len(d)*99/100] }
	t.Logf("good clients: %s and %s at worst, in the flood %s and %s; %d refused, %d not served", middle(quiet), end(quiet), middle(loud), end(loud), refused.Load(), unserved.Load())
	// The flood's own work is done on the same processors, by sixteen clients beside three.
	if len(loud) != len(quiet) || middle(loud) > 30*middle(quiet)+50*time.Millisecond || end(loud) > 30*end(quiet)+time.Second {
		t.Errorf("the good clients were slowed too much: %s and %s became %s and %s", middle(quiet), end(quiet), middle(loud), end(loud))
	}
	ep.stop()
	on := len(ep.entries(audit.RequestRefuse, audit.Refused))
	left := 0
	for _, e := range ep.entries(audit.RefusalsOverflow, audit.Refused) {
		n, err := strconv.Atoi(e.Data["left_out"])
		must(t, err)
		left += n
	}
	if left == 0 || int64(on+left) != refused.Load() {
		t.Errorf("%d on record and %d counted, of %d", on, left, refused.Load())
	}
	lines := strings.Count(ep.log.String(), "code=signature_invalid") + strings.Count(ep.log.String(), "code=client_invalid")
	if n := lines + ep.log.leftOut(t); int64(n) < refused.Load() {
		t.Errorf("the log has %d lines, and %d with those that it counts, of %d", lines, n, refused.Load())
	}
}

// connectOnce sends one CONNECT from an address, and returns the reason code of CONNACK.
func connectOnce(address, port string, conf *tls.Config, connect []byte) (byte, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}, Config: conf}
	nc, err := d.Dial("tcp4", "127.0.0.1:"+port)
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	if _, err := nc.Write(connect); err != nil {
		return 0, err
	}
	var ack [5]byte
	if _, err := io.ReadFull(nc, ack[:]); err != nil {
		return 0, err
	}
	if ack[0] != 0x20 {
		return 0, fmt.Errorf("not a CONNACK: %x", ack)
	}
	i := 2
	if ack[1]&0x80 != 0 { // a length of two bytes
		i = 3
	}
	return ack[i+1], nil
}
