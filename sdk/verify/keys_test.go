package verify_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/verify"
)

// follow is a verifier that follows an issuer, by the bubble's clock.
func follow(t *testing.T, w *web, opts ...verify.Option) *verify.Verifier {
	t.Helper()
	v, err := start(t.Context(), w, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func start(ctx context.Context, w *web, opts ...verify.Option) (*verify.Verifier, error) {
	return verify.New(ctx, issuerID, append([]verify.Option{w.client(), verify.Audience(audience), verify.Log(slog.New(slog.DiscardHandler))}, opts...)...)
}

// check signs a token now and shows it.
func check(t *testing.T, v *verify.Verifier, s *jose.Signer) error {
	t.Helper()
	_, err := v.Check(t.Context(), signToken(t, s, time.Now(), nil))
	return err
}

func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestKeySetChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, w := newSigner(t, jose.P256), newSigner(t, jose.P256), &web{}
		w.publish(a)
		v := follow(t, w)
		defer v.Close()
		wants(t, "the key of the start", check(t, v, a), "")
		raw := signToken(t, a, time.Now(), map[string]any{"exp": time.Now().Add(time.Hour).Unix()})
		_, err := v.Check(t.Context(), raw)
		wants(t, "its token", err, "")

		w.publish(a, b)
		pass(6 * time.Minute)
		before := w.count()
		wants(t, "a key that was added", check(t, v, b), "")
		wants(t, "the one before", check(t, v, a), "")
		if w.count() != before {
			t.Error("a published key was fetched on the way of a request")
		}

		w.publish(b)
		_, err = v.Check(t.Context(), raw)
		wants(t, "a key that was removed, before the next fetch", err, "")
		pass(6 * time.Minute)
		_, err = v.Check(t.Context(), raw)
		wants(t, "a token that was good before, of a key that was removed", err, watchword.KeyUnknown)
		wants(t, "a new token of it", check(t, v, a), watchword.KeyUnknown)
		wants(t, "the one that stayed", check(t, v, b), "")

		w.publish()
		pass(6 * time.Minute)
		wants(t, "after all keys were removed", check(t, v, b), watchword.KeyUnknown)
	})
}

func TestAKeyThatIsNewIsFetchedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, w := newSigner(t, jose.P256), newSigner(t, jose.P256), &web{}
		w.publish(a)
		v := follow(t, w)
		defer v.Close()
		w.publish(a, b)
		wants(t, "within a minute of the last fetch", check(t, v, b), watchword.KeyUnknown)
		pass(time.Minute)
		wants(t, "after it", check(t, v, b), "")
		if got := w.count(); got != 2 {
			t.Errorf("%d fetches, want 2", got)
		}
	})
}

func TestAFloodOfUnknownKeysFetchesOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, w := newSigner(t, jose.P256), &web{}
		w.publish(a)
		v := follow(t, w, verify.Refresh(time.Hour)) // no other fetches meanwhile
		defer v.Close()
		pass(time.Minute)
		forged := make([]string, 50)
		for i := range forged {
			forged[i] = signToken(t, newSigner(t, jose.Ed), time.Now(), nil)
		}
		begin := time.Now()
		for range 300 { // one each second, for five minutes
			var wg sync.WaitGroup
			for _, raw := range forged {
				wg.Go(func() {
					if _, err := v.Check(t.Context(), raw); watchword.CodeOf(err) != watchword.KeyUnknown {
						t.Errorf("got %v", err)
					}
				})
			}
			wg.Wait()
			time.Sleep(time.Second)
		}
		if got := w.count(); got != 1+5 {
			t.Errorf("%d fetches in %s, want one at the start and one each minute", got, time.Since(begin))
		}
	})
}

func TestARequestWaitsABoundedTimeForAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, w := newSigner(t, jose.P256), newSigner(t, jose.P256), &web{}
		w.publish(a)
		v := follow(t, w, verify.Refresh(time.Hour))
		defer v.Close()
		pass(time.Minute)
		hold := make(chan struct{})
		w.wait(hold)
		w.publish(a, b)

		begin := time.Now()
		wants(t, "while the issuer is slow", check(t, v, b), watchword.KeyUnknown)
		if took := time.Since(begin); took != 2*time.Second {
			t.Errorf("waited %s", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		begin = time.Now()
		_, err := v.Check(ctx, signToken(t, b, time.Now(), nil))
		wants(t, "for a caller that has gone", err, watchword.KeyUnknown)
		wants(t, "known keys meanwhile", check(t, v, a), "")
		if took := time.Since(begin); took != 0 {
			t.Errorf("waited %s", took)
		}

		// The number of waiting requests is limited; the others are refused at once.
		var wg sync.WaitGroup
		var mu sync.Mutex
		waited, tokens := map[time.Duration]int{}, make([]string, 100)
		for i := range tokens {
			tokens[i] = signToken(t, b, time.Now(), nil)
		}
		begin = time.Now()
		for _, raw := range tokens {
			wg.Go(func() {
				_, err := v.Check(t.Context(), raw)
				mu.Lock()
				defer mu.Unlock()
				waited[time.Since(begin)]++
				if watchword.CodeOf(err) != watchword.KeyUnknown && err != nil {
					t.Errorf("got %v", err)
				}
			})
		}
		synctest.Wait()
		time.Sleep(time.Second)
		close(hold)
		wg.Wait()
		if waited[0] != 36 || waited[time.Second] != 64 {
			t.Errorf("waited: %v", waited)
		}
		wants(t, "once the issuer answered", check(t, v, b), "")
		if got := w.count(); got != 2 {
			t.Errorf("%d fetches, want 2", got)
		}
	})
}

func TestUnreachableIssuerKeysAreUsedForADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, w := newSigner(t, jose.P256), &web{}
		w.publish(a)
		v := follow(t, w)
		defer v.Close()
		w.cut(true)
		pass(23 * time.Hour)
		wants(t, "for 23 hours", check(t, v, a), "")
		fetches := w.count()
		w.cut(false)
		pass(6 * time.Minute)
		if w.count() == fetches {
			t.Error("the issuer was back for six minutes, and was not asked")
		}
		w.cut(true)
		pass(24*time.Hour - 10*time.Minute)
		wants(t, "the day begins anew", check(t, v, a), "")
		pass(11 * time.Minute)
		wants(t, "for more than a day", check(t, v, a), watchword.Unavailable)
		w.cut(false)
		pass(6 * time.Minute)
		wants(t, "once it is back", check(t, v, a), "")
	})
}

func TestKeysThatMovedAreFoundAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, w := newSigner(t, jose.P256), newSigner(t, jose.P256), &web{}
		w.publish(a)
		v := follow(t, w)
		defer v.Close()
		w.publish(b)
		w.mu.Lock()
		w.moved = true
		w.mu.Unlock()
		pass(6 * time.Minute)
		wants(t, "a key at the new address", check(t, v, b), "")
	})
}

func TestAnIssuerThatNeverAnswersIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, w := newSigner(t, jose.P256), newSigner(t, jose.P256), &web{}
		w.publish(a)
		v := follow(t, w)
		defer v.Close()
		w.publish(b)
		w.wait(make(chan struct{}))
		pass(5*time.Minute + time.Second) // a fetch is under way, and will not end by itself
		w.wait(nil)
		pass(30 * time.Second) // what hangs ends after 10 s, and the next try follows
		wants(t, "once it answers", check(t, v, b), "")
	})
}

func TestFetchesAreSpreadAndBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, w := newSigner(t, jose.P256), &web{}
		w.publish(a)
		v := follow(t, w)
		defer v.Close()
		pass(time.Hour)
		if got := w.count(); got < 1+12 || got > 1+15 { // each 4 to 5 minutes
			t.Errorf("%d fetches in an hour", got)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		a, w := newSigner(t, jose.P256), &web{}
		w.publish(a)
		v := follow(t, w)
		defer v.Close()
		w.publish() // a fetch that fails is one that brings no set
		w.mu.Lock()
		w.keys = []byte("<html>")
		w.mu.Unlock()
		pass(time.Hour)
		// 1, 2, 4 … 256 s, each up to half shorter, then each 2½ to 5 minutes.
		if got := w.count(); got < 1+8+9 || got > 1+10+24 {
			t.Errorf("%d fetches in an hour", got)
		}
		wants(t, "with keys that were no set since", check(t, v, a), "")
	})
}

func TestNothingRunsOnAfterTheEnd(t *testing.T) {
	a := newSigner(t, jose.P256)
	for name, end := range map[string]func(cancel func(), v *verify.Verifier){
		"Close":                   func(_ func(), v *verify.Verifier) { v.Close(); v.Close() },
		"the context":             func(cancel func(), _ *verify.Verifier) { cancel() },
		"both, a fetch under way": func(cancel func(), v *verify.Verifier) { time.Sleep(5 * time.Minute); cancel(); v.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // which fails where a goroutine is left
				w := &web{}
				w.publish(a)
				ctx, cancel := context.WithCancel(t.Context())
				v, err := start(ctx, w)
				if err != nil {
					t.Fatal(err)
				}
				w.wait(make(chan struct{}))
				end(cancel, v)
				synctest.Wait()
				fetches := w.count()
				pass(time.Hour)
				wants(t, "what was fetched counts on", check(t, v, a), "")
				wants(t, "an unknown key asks for nothing", check(t, v, newSigner(t, jose.P256)), watchword.KeyUnknown)
				pass(24 * time.Hour)
				wants(t, "and not without end", check(t, v, a), watchword.Unavailable)
				if w.count() != fetches {
					t.Error("it was fetched after the end")
				}
			})
		})
	}
}

func TestCacheSurvivesRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, w := newSigner(t, jose.P256), newSigner(t, jose.Ed), &web{}
		w.publish(a, b)
		path := filepath.Join(t.TempDir(), "keys.json")
		follow(t, w, verify.Cache(path)).Close()
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("%v, %v", info, err)
		}
		w.cut(true)
		_, err := start(t.Context(), w)
		wants(t, "without a cache", err, watchword.Unavailable)
		_, err = start(t.Context(), w, verify.Cache(path+".other"))
		wants(t, "with a cache that was never written", err, watchword.Unavailable)

		pass(23 * time.Hour)
		v := follow(t, w, verify.Cache(path))
		wants(t, "from the cache", check(t, v, a), "")
		wants(t, "from the cache, the other", check(t, v, b), "")
		pass(time.Hour + time.Second)
		wants(t, "its age counts from the fetch, not from the start", check(t, v, a), watchword.Unavailable)
		v.Close()
		_, err = start(t.Context(), w, verify.Cache(path))
		wants(t, "a cache that is too old", err, watchword.Unavailable)

		w.cut(false)
		w.publish(b)
		v = follow(t, w, verify.Cache(path))
		v.Close()
		w.cut(true)
		v = follow(t, w, verify.Cache(path))
		defer v.Close()
		wants(t, "a key that had left", check(t, v, a), watchword.KeyUnknown)
		wants(t, "a key that had stayed", check(t, v, b), "")
	})
}

func TestDamagedCacheIsIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, w := newSigner(t, jose.P256), &web{}
		w.publish(a)
		path := filepath.Join(t.TempDir(), "keys.json")
		follow(t, w, verify.Cache(path)).Close()
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		later := fmt.Sprintf(`"fetched":%d`, time.Now().Add(time.Hour).Unix())
		for _, tc := range []struct {
			name, content, says string
			mode                os.FileMode
		}{
			{"half of it", string(good[:len(good)/2]), "was changed after it was written, or is damaged", 0o600},
			{"nothing", "", "was changed after it was written, or is damaged", 0o600},
			{"another key under its name", strings.Replace(string(good), string(a.Public().ID()), string(newSigner(t, jose.P256).Public().ID()), 1), "was changed after it was written, or is damaged", 0o600},
			{"another issuer's", strings.Replace(string(good), issuerID, issuerID+"/t/other", 1), "must contain the keys of the expected issuer", 0o600},
			{"from the future", strings.Replace(string(good), fmt.Sprintf(`"fetched":%d`, time.Now().Unix()), later, 1), "future", 0o600},
			{"read by others", string(good), "others", 0o640},
			{"written by others", string(good), "others", 0o602},
		} {
			if err := os.WriteFile(path, []byte(tc.content), tc.mode); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, tc.mode); err != nil {
				t.Fatal(err)
			}
			w.cut(true)
			_, err := start(t.Context(), w, verify.Cache(path))
			wants(t, tc.name, err, watchword.Unavailable)
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%s: %v", tc.name, err)
			}
			w.cut(false)
			follow(t, w, verify.Cache(path)).Close() // which writes a good one in its place
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", tc.name, info, err)
			}
		}
		_, err = start(t.Context(), w, verify.Cache(filepath.Join(t.TempDir(), "missing", "keys.json")))
		wants(t, "a cache in a folder that is not there", err, watchword.ConfigInvalid)
	})
}
