package attack_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/token"
)

// at is a clock that is off by some time, and runs on.
func at(off time.Duration) func() time.Time { return func() time.Time { return time.Now().Add(off) } }

const years = 20 * 365 * 24 * time.Hour

func TestSignedTimeEndpoint(t *testing.T) {
	srv := serve(t, nil)
	nonce := watchword.NewNonce()
	a := srv.request("POST", "/v1/time", "", `{"nonce":"`+nonce+`"}`)
	if a.status != 200 || a.header.Get("Content-Type") != "application/"+token.TypTime || a.header.Get("Cache-Control") != "no-store" {
		t.Fatalf("a good question: %d %s", a.status, a.body)
	}
	ring := srv.stealKeys()
	got, err := token.VerifyTime(a.body, token.NewKeySet(ring.Public(keyring.Time)...), ring.Issuer(), nonce)
	must(t, err)
	if off := time.Since(got); off < 0 || off > 30*time.Second {
		t.Errorf("it says %s", got)
	}
	if other := srv.request("POST", "/v1/time", "", `{"nonce":"`+nonce+`"}`); claims(t, other.body)["jti"] == claims(t, a.body)["jti"] {
		t.Error("two answers of one name")
	}
	long := strings.Repeat("a", 65)
	for _, tc := range []struct {
		name, method, body, kind string
		want                     watchword.Code
		field                    string
	}{
		{"no nonce", "POST", `{}`, "application/json", watchword.BadRequest, "nonce"},
		{"a short one", "POST", `{"nonce":"` + long[:21] + `"}`, "application/json", watchword.BadRequest, "nonce"},
		{"a long one", "POST", `{"nonce":"` + long + `"}`, "application/json", watchword.BadRequest, "nonce"},
		{"one that is no base64url", "POST", `{"nonce":"` + long[:30] + `=."}`, "application/json", watchword.BadRequest, "nonce"},
		{"a number", "POST", `{"nonce":1}`, "application/json", watchword.BadRequest, "nonce"},
		{"another member", "POST", `{"nonce":"` + nonce + `","iat":1}`, "application/json", watchword.BadRequest, "iat"},
		{"a member twice", "POST", `{"nonce":"` + nonce + `","nonce":"` + nonce + `"}`, "application/json", watchword.BadRequest, "body"},
		{"words", "POST", `what time is it`, "application/json", watchword.BadRequest, "body"},
		{"a form", "POST", "nonce=" + nonce, "application/x-www-form-urlencoded", watchword.UnsupportedMediaType, ""},
		{"too much", "POST", `{"nonce":"` + strings.Repeat("a", 2000) + `"}`, "application/json", watchword.TooLarge, ""},
	} {
		a := srv.request(tc.method, "/v1/time", "", tc.body, "Content-Type: "+tc.kind)
		if a.code != tc.want || a.field != tc.field {
			t.Errorf("%s: %d %q %q, want %q %q", tc.name, a.status, a.code, a.field, tc.want, tc.field)
		}
	}
	if a := srv.request("GET", "/v1/time", srv.token(srv.enroll("lamp-1", device.Options{}, nil)), ""); a.code != watchword.MethodNotAllowed {
		t.Errorf("GET: %q", a.code)
	}
	if a := srv.request("GET", "/v1/self", a.body, ""); a.code != watchword.TokenKind {
		t.Errorf("signed time as an access token: %q", a.code)
	}
}

func TestSignedTimeHasARate(t *testing.T) {
	srv := serve(t, func(c *server.Config) { c.Limits.TokenRate = 5 })
	for n := 0; ; n++ {
		a := srv.request("POST", "/v1/time", "", `{"nonce":"`+watchword.NewNonce()+`"}`)
		if a.code == watchword.RateLimited && a.header.Get("Retry-After") != "" {
			return
		}
		if a.status != 200 || n > 1000 {
			t.Fatalf("after %d: %d %q", n, a.status, a.code)
		}
	}
}

// A device that does not know the time, or wrongly, lives as every other from its
// enrollment on.
func TestDevicesWhoseClockIsWrong(t *testing.T) {
	for _, tc := range []struct {
		name string
		o    device.Options
	}{
		{"no clock, 1970", device.Options{NoClock: true, Now: at(-56 * 365 * 24 * time.Hour)}},
		{"no clock, the future", device.Options{NoClock: true, Now: at(years)}},
		{"years behind", device.Options{Now: at(-years)}},
		{"ten minutes ahead", device.Options{Now: at(10 * time.Minute)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := serve(t, nil)
			v := counting(srv.enroll("lamp-1", tc.o, nil))
			run, stop := context.WithCancel(t.Context())
			ran := make(chan error, 1)
			go func() { ran <- v.Run(run) }()
			c, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "lamp.set", WaitReceipt: 30 * time.Second})
			must(t, err)
			if c.State != watchword.Done || v.acts.Load() != 1 {
				t.Errorf("the command is %s", c.State)
			}
			if off := time.Since(v.Time()).Abs(); off > 10*time.Second {
				t.Errorf("the device is off by %s", off)
			}
			if iat := claims(t, c.Receipt.JWS)["iat"].(int64); time.Since(time.Unix(iat, 0)).Abs() > time.Minute {
				t.Errorf("the receipt says %s", time.Unix(iat, 0))
			}
			stop()
			must(t, <-ran)
			must(t, v.Close())
			if n := strings.Count(srv.log.String(), "clock of this device is wrong") + strings.Count(srv.log.String(), "known by the server's signature"); n != 1 {
				t.Errorf("said %d times", n)
			}
		})
	}
}

// Commands at a device without a clock: by nonce until it knows the time, by time then.
func TestCommandsWithoutAClock(t *testing.T) {
	srv := serve(t, nil)
	v := counting(srv.enroll("lamp-1", device.Options{NoClock: true, Now: at(-years)}, nil))
	folder := filepath.Dir(v.CAFile())
	ring := srv.stealKeys()
	seal := func(seq int64, begin, end time.Duration) string {
		now := time.Now()
		return v.seal(t, ring.Signer(keyring.Command), token.Command{
			Issuer: ring.Issuer(), Device: "lamp-1", ID: watchword.CommandID(watchword.NewID("cmd_", now)), Epoch: 1, Seq: seq,
			Function: "lamp.set", Args: []byte(`{}`), By: "operator", Issued: now.Add(begin), Expires: now.Add(end),
		})
	}
	if v.Time().IsZero() {
		t.Fatal("enrollment did not tell it the time")
	}
	_, err := v.Execute(t.Context(), seal(1, -10*time.Minute, -5*time.Minute))
	wants(t, "an old command, by time", err, watchword.CommandExpired)
	_, err = v.Execute(t.Context(), seal(1, 5*time.Minute, 6*time.Minute))
	wants(t, "an early command, by time", err, watchword.TokenEarly)
	if _, err = v.Execute(t.Context(), seal(1, 0, time.Minute)); err != nil {
		t.Errorf("a fresh command without a nonce, by time: %v", err)
	}
	must(t, v.Close())

	again := counting(srv.openDevice(folder, device.Options{NoClock: true, Now: at(-years)})) // a reboot: the time is unknown
	if !again.Time().IsZero() {
		t.Fatal("it knows the time by itself")
	}
	_, err = again.Execute(t.Context(), seal(2, 0, time.Minute))
	wants(t, "a fresh command without a nonce, before it knows", err, watchword.NonceMismatch)
	if _, err := again.NewToken(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err = again.Execute(t.Context(), seal(2, 0, time.Minute)); err != nil {
		t.Errorf("once it knows: %v", err)
	}
}

// A man in the middle can delay the answer or replay an old one: neither sets a clock.
func TestOldTimeAnswerIsRefused(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{NoClock: true, Now: at(-years)}, nil)
	folder := filepath.Dir(d.CAFile())
	must(t, d.Close())
	recorded := srv.request("POST", "/v1/time", "", `{"nonce":"`+watchword.NewNonce()+`"}`).body
	asked := make(chan struct{}, 16)
	between := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/time" {
			asked <- struct{}{}
		}
		_, _ = io.WriteString(w, recorded)
	}))
	defer between.Close()
	var id map[string]any
	b, err := os.ReadFile(filepath.Join(folder, "device.json"))
	must(t, err)
	must(t, json.Unmarshal(b, &id))
	id["https"] = between.URL
	b, err = json.Marshal(id)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(folder, "device.json"), b, 0o600))

	d = srv.openDevice(folder, device.Options{NoClock: true, Now: at(-years)})
	if _, err := d.NewToken(t.Context()); err == nil {
		t.Error("a token from who sits between")
	}
	select {
	case <-asked:
	default:
		t.Error("it was not asked")
	}
	if !d.Time().IsZero() || !strings.Contains(srv.log.String(), "code=nonce_mismatch") {
		t.Errorf("the device says it is %s", d.Time())
	}
}
