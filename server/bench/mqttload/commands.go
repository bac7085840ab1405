package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/token"
)

// simulated is a device whose state is in memory.
type simulated struct {
	id      watchword.SubjectID
	token   string
	signer  *jose.Signer
	opener  *jose.Decrypter
	trusted token.KeySet
	issuer  string
}

// simulate continues an enrolled device in memory.
func simulate(ctx context.Context, d *device.Device, dir string) (s simulated, err error) {
	s.id = d.ID()
	if s.token, err = d.Token(ctx); err != nil {
		return s, err
	}
	trust := d.Trust()
	s.trusted, s.issuer = token.NewKeySet(trust.Command...), trust.Issuer
	var keys [2]*jose.PrivateKey
	for i, f := range []struct {
		name string
		use  jose.Use
	}{{"sign.jwk", jose.ForSigning}, {"seal.jwk", jose.ForEncryption}} {
		raw, err := os.ReadFile(filepath.Join(dir, f.name))
		if err != nil {
			return s, err
		}
		if keys[i], err = jose.ParsePrivateJWK(raw, f.use); err != nil {
			return s, err
		}
	}
	if s.signer, err = keys[0].Signer(); err != nil {
		return s, err
	}
	s.opener, err = keys[1].Decrypter()
	return s, err
}

// obey executes a command like a device, without a journal.
func (s *simulated) obey(jwe string) (receipt string, err error) {
	now := time.Now()
	jws, _, err := s.opener.Decrypt(jwe, watchword.MaxDocument)
	if err != nil {
		return "", err
	}
	c, err := token.VerifyCommand(string(jws), s.trusted, s.issuer, s.id, now, "")
	if err != nil {
		return "", err
	}
	return token.SignReceipt(s.signer, token.Receipt{
		Device: s.id, Issuer: s.issuer, Epoch: c.Epoch, Seq: c.Seq, Command: c.ID, Hash: jose.HashString(string(jws)), Status: watchword.StatusDone, At: now,
	})
}

// commands: from the API call to the answer that carries the verified receipt, to
// one of 2,500 devices after the other.
func (l *benchRun) commands(ctx context.Context) error {
	devices := l.scaled(2500)
	ps, err := l.peers(ctx, devices)
	if err != nil {
		return err
	}
	fmt.Printf("\n### Commands to %d devices over MQTT\n\nSigned, sealed, durable; obeyed by simulated devices (state in memory), receipts signed and verified. From the API call to the answer that carries the verified receipt. Server, devices and orderer on the same cores.\n\n", devices)
	fmt.Printf("| | server | done, a second | p50 | p99 | most | not done | server's CPU per command | promised |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, secret := range []bool{false, true} {
		for _, rate := range []int{700, 1000} {
			for _, p := range ps {
				if p.watchword == nil {
					continue
				}
				if err := l.commandsAt(ctx, p, devices, rate, secret); err != nil {
					return fmt.Errorf("%s: %w", p.name, err)
				}
			}
		}
	}
	return nil
}

func (l *benchRun) commandsAt(ctx context.Context, p *benchServer, devices, rate int, secret bool) error {
	const seconds = 10
	wrong := make(chan error, devices)
	fleet := make([]*client, devices)
	var g errgroup.Group
	g.SetLimit(32)
	for i := range devices {
		g.Go(func() (err error) {
			d := &p.watchword.devices[i]
			up := &packet.Publish{Topic: fmt.Sprintf("devices/%s/receipts", d.id), QoS: 1}
			ready := make(chan struct{})
			fleet[i], err = p.device(ctx, i, 0, secret, func(int) func(*message) {
				return func(m *message) {
					<-ready
					receipt, err := d.obey(string(m.Payload))
					if watchword.CodeOf(err) == watchword.CommandExpired {
						return // it came too late, and is counted where it was ordered
					}
					if err != nil {
						wrong <- err
						return
					}
					up.ID = up.ID%60000 + 1
					up.Payload = []byte(receipt)
					_ = fleet[i].send(up) // a lost one is missed at the end
					select {
					case <-fleet[i].acks:
					default:
					}
				}
			})
			close(ready)
			if err == nil {
				err = fleet[i].subscribe(fmt.Sprintf("devices/%s/commands", d.id), 1)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	time.Sleep(500 * time.Millisecond)
	total := rate * seconds
	took := make([]time.Duration, total)
	var done atomic.Int64
	before := p.cpu()
	start := time.Now()
	var wg sync.WaitGroup
	for i := range total {
		if wait := time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(rate))); wait > 0 {
			time.Sleep(wait)
		}
		wg.Go(func() {
			began := time.Now()
			ok, err := p.watchword.order(ctx, watchword.SubjectID(fmt.Sprintf("dev-%d", rand.IntN(devices))))
			if took[i] = time.Since(began); ok {
				done.Add(1)
			}
			if err != nil {
				select {
				case wrong <- err:
				default:
				}
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(start)
	select {
	case err := <-wrong:
		return err
	default:
	}
	cost := p.cpu() - before
	waitClosed(fleet...)
	slices.Sort(took)
	over, promise := "plain", ""
	if secret {
		over = "TLS 1.3"
	}
	if rate == 1000 {
		promise = "p99 ≤ 20 ms"
	}
	fmt.Printf("| %d a second, %s | %s | %.0f | %.1f ms | %.1f ms | %.1f ms | %d of %d | %.2f ms | %s |\n", rate, over, p.name, float64(done.Load())/elapsed.Seconds(),
		ms(took[total/2]), ms(took[total*99/100]), ms(took[total-1]), int64(total)-done.Load(), total, ms(cost/time.Duration(total)), promise)
	return nil
}

// order calls a function, signed by the caller's own key, waits for its end, and reports
// whether it was done. Under overload it may be refused, or not be done in 90 s: that is
// no error, but part of what is measured.
func (srv *watchwordServer) order(ctx context.Context, to watchword.SubjectID) (done bool, err error) {
	c, err := srv.admin.Send(ctx, admin.CommandOrder{Device: to, Function: "set", Args: json.RawMessage(`{"level":40}`), WaitReceipt: 30 * time.Second})
	if err == nil { // where more wait than the server lets, it answers at once with how far the command is
		c, err = srv.admin.Await(ctx, c, time.Minute)
	}
	switch watchword.CodeOf(err) {
	case "":
	case watchword.Busy, watchword.RateLimited, watchword.TimedOut, watchword.Unavailable:
		return false, nil
	default:
		return false, fmt.Errorf("%s to %s is %q: %w", c.ID, to, c.State, err)
	}
	switch c.State {
	case watchword.Done:
		return true, nil
	case watchword.Queued, watchword.Sent, watchword.Delivered, watchword.Expired, watchword.Unknown:
		return false, nil
	default:
		return false, fmt.Errorf("%s to %s is %q", c.ID, to, c.State)
	}
}
