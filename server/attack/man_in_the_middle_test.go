package attack_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/token"
)

// A man in the middle presents the true trust bundle, and waits for the code.
func TestManInTheMiddleDoesNotSeeEnrollmentCode(t *testing.T) {
	srv := serve(t, nil)
	made, err := srv.admin.CreateDevice(t.Context(), "lamp-1", nil, 0)
	must(t, err)
	var asked, told atomic.Int64
	between := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		if err != nil || strings.Contains(string(body), made.Enrollment.Code) || strings.Contains(r.URL.String(), made.Enrollment.Code) {
			told.Add(1)
		}
		asked.Add(1)
		req, err := http.NewRequestWithContext(r.Context(), r.Method, srv.url+r.URL.Path, strings.NewReader(string(body)))
		if err != nil {
			return
		}
		res, err := srv.client().Do(req)
		if err != nil {
			return
		}
		defer res.Body.Close()
		w.Header().Set("Content-Type", res.Header.Get("Content-Type"))
		w.WriteHeader(res.StatusCode)
		_, _ = io.Copy(w, res.Body) // the device has gone, if at all
	}))
	defer between.Close()
	link := strings.Replace(made.Enrollment.Link, srv.url, between.URL, 1)
	d := srv.openDevice(filepath.Join(t.TempDir(), "d"), device.Options{})
	wants(t, "through a man in the middle", d.Enroll(t.Context(), link), watchword.PeerUntrusted)
	if asked.Load() == 0 || told.Load() != 0 {
		t.Errorf("asked %d times, told the code %d times", asked.Load(), told.Load())
	}
	must(t, d.Enroll(t.Context(), made.Enrollment.Link)) // the code was not spent
}

// An answer that was lost on its way: the same code and keys bring it again.
func TestPairingSameKeysTwiceGetsSameAnswer(t *testing.T) {
	srv := serve(t, nil)
	made, err := srv.admin.CreateDevice(t.Context(), "lamp-1", watchword.Labels{"site": "a"}, time.Hour)
	must(t, err)
	issuer := srv.stealKeys().Issuer()
	body := func(sign *jose.Signer, seal *jose.PublicKey, proofOf string) string {
		sum := token.CodeDigest(proofOf)
		proof, err := token.SignEnrollment(sign, issuer, b64(sum[:]), seal.ID(), time.Now())
		must(t, err)
		b, err := json.Marshal(map[string]any{
			"code": made.Enrollment.Code, "proof": proof,
			"keys": map[string]any{"sign": json.RawMessage(sign.Public().JWK()), "seal": json.RawMessage(seal.JWK())},
		})
		must(t, err)
		return string(b)
	}
	_, sign := newKey(t, "Ed25519")
	_, attacker := newKey(t, "P-256")
	seal, err := jose.GenerateKey(jose.X25519)
	must(t, err)
	other, err := jose.GenerateKey(jose.X25519)
	must(t, err)

	stolen := body(sign, seal.Public(), made.Enrollment.Code)
	swapped := strings.Replace(stolen, string(seal.Public().JWK()), string(other.Public().JWK()), 1)
	if a := srv.request("POST", "/v1/enroll", "", swapped); a.code != watchword.ProofInvalid {
		t.Errorf("another sealing key under the proof: %d %s", a.status, a.body)
	}
	if a := srv.request("POST", "/v1/enroll", "", body(sign, seal.Public(), watchword.NewNonce())); a.code != watchword.ProofInvalid {
		t.Errorf("a proof for another code: %d %s", a.status, a.body)
	}
	if a := srv.request("POST", "/v1/enroll", "", body(sign, sign.Public(), made.Enrollment.Code)); a.code != watchword.BadRequest {
		t.Errorf("one key for both purposes: %d %s", a.status, a.body)
	}
	first := srv.request("POST", "/v1/enroll", "", stolen)
	again := srv.request("POST", "/v1/enroll", "", body(sign, seal.Public(), made.Enrollment.Code))
	if first.status != 200 || first.body != again.body || !strings.Contains(first.body, `"id":"lamp-1"`) {
		t.Errorf("%d %s\n%d %s", first.status, first.body, again.status, again.body)
	}
	if a := srv.request("POST", "/v1/enroll", "", body(attacker, seal.Public(), made.Enrollment.Code)); a.code != watchword.CodeInvalid {
		t.Errorf("other keys afterwards: %d %s", a.status, a.body)
	}
	if strings.Contains(srv.log.String(), made.Enrollment.Code) {
		t.Error("the code is in the log")
	}
}
