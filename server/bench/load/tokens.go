package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/enroll"
	"github.com/watchword-iot/watchword/server/sqlite"
	"github.com/watchword-iot/watchword/token"
)

// active is the number of devices that request tokens, each at the same rate.
const active = 2000

// fill writes devices with keys to the store of a stopped server, and returns the signers of the
// requesting ones, spread over all.
func fill(ctx context.Context, data string, devices, ask int) (map[watchword.SubjectID]*jose.Signer, error) {
	st, err := sqlite.Open(ctx, filepath.Join(data, "watchword.db"), sqlite.Options{})
	if err != nil {
		return nil, err
	}
	signers := map[watchword.SubjectID]*jose.Signer{}
	var mu sync.Mutex
	var next atomic.Int64
	errs := make(chan error, 256)
	for range cap(errs) { // so many share a commit
		go func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= devices {
					errs <- nil
					return
				}
				id, s, err := admit(ctx, st, i)
				if err != nil {
					errs <- err
					return
				}
				if i%max(devices/ask, 1) == 0 {
					mu.Lock()
					signers[id] = s
					mu.Unlock()
				}
			}
		}()
	}
	for range cap(errs) {
		err = errors.Join(err, <-errs)
	}
	return signers, errors.Join(err, st.Close())
}

// admit is a device's enrollment as the store sees it.
func admit(ctx context.Context, st *sqlite.Store, i int) (watchword.SubjectID, *jose.Signer, error) {
	id := watchword.SubjectID(fmt.Sprintf("stored-%06d", i))
	now := time.Now()
	code := enroll.Code{Tenant: watchword.DefaultTenant, Hash: token.CodeDigest(string(id)), Subject: id, Expires: now.Add(time.Hour)}
	sub := watchword.Subject{
		Tenant: watchword.DefaultTenant, ID: id, Kind: watchword.Device, State: watchword.New, Created: now, Changed: now,
		Labels: watchword.Labels{"kind": "meter", "site": fmt.Sprintf("plant-%d", i%100)},
	}
	e := audit.Actor{Tenant: watchword.DefaultTenant}
	if err := st.CreateSubject(ctx, sub, &code, e.DoneEntry(audit.DeviceCreate, string(id), now, nil)); err != nil {
		return "", nil, err
	}
	var keys [2]*jose.PrivateKey
	for j := range keys {
		k, err := jose.GenerateKey(jose.P256)
		if err != nil {
			return "", nil, err
		}
		keys[j] = k
	}
	key := func(k *jose.PrivateKey, p watchword.Purpose) watchword.Key {
		return watchword.Key{ID: k.Public().ID(), Purpose: p, JWK: k.Public().JWK(), State: watchword.KeyActive, Added: now}
	}
	_, _, err := st.RedeemCode(ctx, enroll.Redemption{
		Tenant: watchword.DefaultTenant, Hash: code.Hash, Sign: key(keys[0], watchword.Sign), Seal: key(keys[1], watchword.Seal),
	}, watchword.AuthorityVersions{}, now, audit.FixedEntry[watchword.Subject](e.DoneEntry(audit.DeviceEnroll, "", now, nil)))
	if err != nil {
		return "", nil, err
	}
	s, err := keys[0].Signer()
	return id, s, err
}

// spent returns the CPU time of this process.
func spent() (time.Duration, error) {
	var u syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}

// cryptoBound is how many pairs of one ES256 check and one signature a core does
// in a second of its time while all cores are at it, as they are under load.
func cryptoBound() (float64, error) {
	k, err := jose.GenerateKey(jose.P256)
	if err != nil {
		return 0, err
	}
	priv := k.Crypto().(*ecdsa.PrivateKey)
	sum := sha256.Sum256([]byte("watchword"))
	const n = 5000
	cores := runtime.GOMAXPROCS(0)
	errs := make(chan error, cores)
	from, err := spent()
	if err != nil {
		return 0, err
	}
	for range cores {
		go func() {
			errs <- func() error {
				for range n {
					sig, err := ecdsa.SignASN1(rand.Reader, priv, sum[:])
					if err != nil {
						return err
					}
					if !ecdsa.VerifyASN1(&priv.PublicKey, sum[:], sig) {
						return errors.New("a signature does not verify")
					}
				}
				return nil
			}()
		}()
	}
	for range cores {
		err = errors.Join(err, <-errs)
	}
	to, terr := spent()
	return float64(n*cores) / (to - from).Seconds(), errors.Join(err, terr)
}

// forms returns token requests of the signers, in turn.
func (b *bench) forms(signers map[watchword.SubjectID]*jose.Signer, total int) ([]string, error) {
	out := make([]string, 0, total)
	for len(out) < total {
		for id, s := range signers {
			a, err := token.SignAssertion(s, id, b.admin.Issuer(), time.Now(), token.AssertionLifetime)
			if err != nil {
				return nil, err
			}
			out = append(out, url.Values{
				"grant_type": {"client_credentials"}, "client_assertion": {a},
				"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
			}.Encode())
		}
	}
	return out[:total], nil
}

// tokenEndpoint exchanges assertions of many devices, signed beforehand, over TLS
// connections that are kept. warm says that each has asked before.
func (b *bench) tokenEndpoint(ctx context.Context, signers map[watchword.SubjectID]*jose.Signer, stored, total, clients int, warm bool) error {
	pem, err := os.ReadFile(filepath.Join(b.dir, "data", "tls", "ca.pem"))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	if warm { // each device once, which the server remembers
		warmth, err := b.forms(signers, len(signers))
		if err != nil {
			return err
		}
		hc := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
		defer hc.CloseIdleConnections()
		for _, f := range warmth {
			if err := post(ctx, hc, b.admin.URL()+"/oauth/token", f); err != nil {
				return err
			}
		}
	}
	forms, err := b.forms(signers, total)
	if err != nil {
		return err
	}
	before, err := cryptoBound()
	if err != nil {
		return err
	}
	var next atomic.Int64
	took := make([]time.Duration, total)
	errs := make(chan error, clients)
	from, err := b.cpu()
	if err != nil {
		return err
	}
	start := time.Now()
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			hc := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
			defer hc.CloseIdleConnections()
			for {
				i := int(next.Add(1)) - 1
				if i >= total {
					return
				}
				began := time.Now()
				if err := post(ctx, hc, b.admin.URL()+"/oauth/token", forms[i]); err != nil {
					errs <- err
					return
				}
				took[i] = time.Since(began)
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(start)
	to, err := b.cpu()
	if err != nil {
		return err
	}
	select {
	case err := <-errs:
		return err
	default:
	}
	after, err := cryptoBound()
	if err != nil {
		return err
	}
	bound := (before + after) / 2
	perCore := float64(total) / (to - from).Seconds()
	if b.perCore, b.bound = perCore, bound; b.quiet {
		return nil
	}
	slices.Sort(took)
	again := "asked before"
	if !warm {
		again = "never asked before"
	}
	fmt.Printf("| %d, %s | %.0f | %.0f | %.0f | %.2f | %s | %s |\n",
		stored, again, float64(total)/elapsed.Seconds(), perCore, bound, perCore/bound, quantile(took, 0.5), quantile(took, 0.99))
	return nil
}
