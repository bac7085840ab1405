package admin

import (
	"context"
	"encoding/base64"
	"net/http"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// Enroll enrolls the key of an operator or of a service with a one-time link. It sends the code only after it has verified the
// trust bundle by the pin of the link, and the TLS certificate by the bundle. Calling it again with the same link and key has
// the same result, until the link expires. name tells the keys of one subject apart, for example the host name; it may be empty. now
// nil means time.Now. The result has everything that [New] needs, but for the key.
//
// Codes: bad_request for an invalid link, and for the link of a device; pin_mismatch, bundle_invalid, peer_untrusted if the
// server is not the link's; code_invalid, conflict, rate_limited, unavailable.
func Enroll(ctx context.Context, link string, key *jose.PrivateKey, name string, now func() time.Time) (Options, error) {
	if now == nil {
		now = time.Now
	}
	s, out, err := EnrollKey(ctx, link, key, name, now)
	if err != nil {
		return Options{}, err
	}
	return s.Options(out, key, now())
}

// EnrollKey is [Enroll] for a program that passes what the server answered on to a client of another kind, such as one for MQTT.
func EnrollKey(ctx context.Context, link string, key *jose.PrivateKey, name string, now func() time.Time) (s *Server, out api.EnrollResponse, err error) {
	if now == nil {
		now = time.Now
	}
	url, code, pin, err := token.ParseEnrollmentLink(link)
	if err != nil {
		return nil, out, err
	}
	if s, err = VerifyServer(ctx, url, pin, now()); err != nil {
		return nil, out, err
	}
	signer, err := key.Signer()
	if err != nil {
		return nil, out, err
	}
	sum := token.CodeDigest(code)
	proof, err := token.SignEnrollment(signer, s.Issuer, base64.RawURLEncoding.EncodeToString(sum[:]), "", now())
	if err != nil {
		return nil, out, err
	}
	c, err := s.Client(now)
	if err != nil {
		return nil, out, err
	}
	defer c.CloseIdleConnections()
	_, err = c.JSON(ctx, rest.Request{Method: http.MethodPost, Path: "/v1/enroll"}, api.EnrollRequest{
		Code: code, Proof: proof, Keys: api.NamedKeys{PublicKeys: api.PublicKeys{Sign: key.Public().JWK()}, Name: name},
	}, &out)
	if err == nil {
		err = s.checkEnrolled(out)
	}
	return s, out, err
}

// checkEnrolled refuses an answer that does not name an operator or a service of the issuer of the trust bundle. Code:
// issuer_mismatch.
func (s *Server) checkEnrolled(r api.EnrollResponse) error {
	if r.Issuer != s.Issuer || !watchword.ValidName(string(r.ID)) || r.Kind != watchword.Operator && r.Kind != watchword.Service {
		return watchword.Refuse(watchword.IssuerMismatch, "the answer must name an operator or a service, of the issuer of the trust bundle")
	}
	return nil
}

// Options returns the options of a client of the server, from the server's answer to an enrollment of key at the time now. Code:
// issuer_mismatch if the answer does not name an operator or a service of the issuer of the trust bundle.
func (s *Server) Options(r api.EnrollResponse, key *jose.PrivateKey, now time.Time) (Options, error) {
	if err := s.checkEnrolled(r); err != nil {
		return Options{}, err
	}
	return Options{URL: s.URL, Issuer: s.Issuer, Subject: r.ID, Key: key, Bundle: s.Bundle, Pin: s.Pin, BundleAt: now}, nil
}
