package acme

import (
	"crypto/tls"
	"net/http"
	"strings"

	xacme "golang.org/x/crypto/acme"
)

// How the authority validates a name.
const (
	tlsALPN = "tls-alpn-01" // RFC 8737
	http01  = "http-01"     // RFC 8555 §8.3
)

// challenge is the answer to a validation.
type challenge struct {
	name string
	cert *tls.Certificate // for TLS-ALPN-01; nil: HTTP-01
	path string
	text string
}

// answer has a validation of a name answered. It replaces the one before: an order validates one name after another.
func (m *Manager) answer(client *xacme.Client, way, name, token string) error {
	c := &challenge{name: name}
	if way == http01 {
		text, err := client.HTTP01ChallengeResponse(token)
		if err != nil {
			return err
		}
		c.path, c.text = client.HTTP01ChallengePath(token), text
	} else {
		cert, err := client.TLSALPN01ChallengeCert(token, name)
		if err != nil {
			return err
		}
		c.cert = &cert
	}
	m.challenge.Store(c)
	return nil
}

// ChallengeConfig returns the TLS configuration for a validation by TLS-ALPN-01 (RFC 8737 §3); nil where the handshake is not one, or
// none of that name is in progress.
func (m *Manager) ChallengeConfig(hello *tls.ClientHelloInfo) *tls.Config {
	if len(hello.SupportedProtos) != 1 || hello.SupportedProtos[0] != xacme.ALPNProto {
		return nil
	}
	c := m.challenge.Load()
	if c == nil || c.cert == nil || c.name != strings.ToLower(hello.ServerName) {
		return nil
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{xacme.ALPNProto}, Certificates: []tls.Certificate{*c.cert}, SessionTicketsDisabled: true}
}

// ServeHTTP answers a validation by HTTP-01 (RFC 8555 §8.3) of the name that the request is for, and nothing else.
func (m *Manager) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host, _, _ := strings.Cut(strings.ToLower(r.Host), ":")
	c := m.challenge.Load()
	if c == nil || c.path == "" || c.path != r.URL.Path || c.name != host || r.Method != http.MethodGet {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	_, _ = w.Write([]byte(c.text)) // the error means that the client has closed the connection
}
