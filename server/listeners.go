package server

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/token"
)

// listen binds all addresses first, so that port 0 is replaced by the real port before anything
// uses it.
func (s *Server) listen() (err error) {
	if s.https, err = s.bind("server.https", &s.cfg.Server.HTTPS); err != nil {
		return err
	}
	s.info = Info{URL: s.cfg.PublicURL(), HTTPS: s.https.Addr().String(), Data: s.cfg.Data}
	if s.cfg.Server.MQTTS != "" {
		if s.mqtts, err = s.bind("server.mqtts", &s.cfg.Server.MQTTS); err != nil {
			return err
		}
		s.info.MQTTS = s.mqtts.Addr().String()
	}
	if s.cfg.Server.MQTT != "" {
		if s.mqtt, err = s.bind("server.mqtt", &s.cfg.Server.MQTT); err != nil {
			return err
		}
		s.info.MQTT = s.mqtt.Addr().String()
	}
	if s.cfg.Server.AcmeHTTP != "" {
		if s.acmeHTTP, err = s.bind("server.acme_http", &s.cfg.Server.AcmeHTTP); err != nil {
			return err
		}
		s.info.ACMEHTTP = s.acmeHTTP.Addr().String()
	}
	if s.cfg.Metrics.Listen != "" {
		if s.metrics, err = s.bind("metrics.listen", &s.cfg.Metrics.Listen); err != nil {
			return err
		}
		s.info.Metrics = s.metrics.Addr().String()
	}
	return nil
}

// origins returns the HTTPS origins of this server beside its issuers; a DPoP proof must name one of all these. The Host
// of a request is not trusted.
func (s *Server) origins() token.Origins {
	urls := []string{"https://" + s.info.HTTPS, "https://" + s.cfg.Server.HTTPS}
	if s.info.URL != s.keys.Issuer() { // the configuration changed the address without a move
		urls = append(urls, s.info.URL)
	}
	_, port, err := net.SplitHostPort(s.info.HTTPS)
	if err != nil {
		return token.NewOrigins(urls...)
	}
	for _, host := range append([]string{"localhost", "127.0.0.1", "::1"}, s.cfg.Server.names()...) {
		urls = append(urls, "https://"+net.JoinHostPort(host, port))
	}
	return token.NewOrigins(urls...)
}

// bind listens on an address of the configuration and stores the actual port in it.
func (s *Server) bind(key string, address *string) (net.Listener, error) {
	l, err := net.Listen("tcp", *address)
	if err != nil {
		return nil, watchword.Wrap(err, watchword.ConfigInvalid, "%s: cannot listen on %s: %s", key, *address, networkErrorText(err))
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	host, _, err := net.SplitHostPort(*address)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	*address = net.JoinHostPort(host, port)
	var forwarding networks // proxies that end TLS, and name clients in HTTP headers
	if key == "server.https" {
		forwarding, _ = parseNetworks(s.cfg.Server.TrustedProxies) // Config.Check was called
	}
	if key == "server.https" || key == "server.mqtts" || key == "server.mqtt" { // the others are plain HTTP, before which nginx sends no PROXY header
		proxies, _ := parseNetworks(s.cfg.Server.ProxyProtocol)
		l = newProxyListener(l, proxies, forwarding, s.o.Log)
	}
	return limitListener{l, newConnectionLimit(s.cfg.Limits.Connections, s.cfg.Limits.PerAddress, forwarding)}, nil
}

// publicMQTTS returns the MQTT address that devices receive with a public URL: server.public_mqtts, or the URL's host and
// MQTT's port; empty without MQTT over TLS.
func (s *Server) publicMQTTS(publicURL string) string {
	if a, err := canonicalHostPort(s.cfg.Server.PublicMQTTS); err == nil {
		return a
	}
	_, port, err := net.SplitHostPort(s.info.MQTTS)
	if err != nil {
		return ""
	}
	return net.JoinHostPort(hostOf(publicURL), port)
}

// withMQTTALPN returns the TLS configuration with the ALPN protocol mqtt.
func withMQTTALPN(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.NextProtos = []string{"mqtt"}
	return c
}

// networkErrorText returns the innermost text of a network error, without the address.
func networkErrorText(err error) string {
	if e, ok := errors.AsType[*os.SyscallError](err); ok {
		return e.Err.Error()
	}
	return err.Error()
}

// modernSuites are the cipher suites of TLS 1.2: forward secrecy and authenticated encryption.
var modernSuites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// tls returns the TLS configuration: version 1.3, with the configured certificate, or one of the
// server's own CA and, for its names, the one that is ordered by ACME.
func (s *Server) tls() (*tls.Config, error) {
	// No CurvePreferences: Go's default prefers X25519MLKEM768.
	c := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"}}
	if s.cfg.Server.TLSMin == "1.2" {
		c.MinVersion, c.CipherSuites = tls.VersionTLS12, modernSuites
	}
	if s.cfg.Server.TLSCert != "" {
		f, err := openCertFiles(s.cfg.Server.TLSCert, s.cfg.Server.TLSKey, s.o.Log, s.o.Now)
		if watchword.CodeOf(err) == watchword.FileUntrusted {
			return nil, err
		}
		if err != nil {
			return nil, watchword.Wrap(err, watchword.ConfigInvalid, "server.tls_cert and server.tls_key must be a certificate and its key")
		}
		for _, n := range s.cfg.Server.names() { // a proxy in front of the server may show another certificate
			if err := f.verifyName(n); err != nil {
				s.o.Log.Warn("the certificate of server.tls_cert is not for this name: clients that use it and reach this server refuse it", slog.String("name", n), slog.Any("err", err))
			}
		}
		c.GetCertificate, s.certFiles = f.get, f
		return c, nil
	}
	s.info.CAFile = filepath.Join(s.cfg.Data, caFile)
	if err := durable.WriteFile(s.info.CAFile, s.keys.CAPEM(), 0o644); err != nil {
		return nil, err
	}
	c.GetCertificate = s.keys.CertSource(s.certificateNames, s.o.Now).GetCertificate
	if len(s.cfg.Server.AcmeDomain) == 0 {
		return c, nil
	}
	if err := s.openACME(); err != nil {
		return nil, err
	}
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) { return s.acme.ChallengeConfig(hello), nil }
	own := c.GetCertificate
	c.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if public := s.acme.Certificate(hello.ServerName); public != nil {
			return public, nil
		}
		return own(hello)
	}
	return c, nil
}

// routes adds MQTT over WebSocket to the API.
func (s *Server) routes(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, path := watchword.CutTenantPath(r.URL.Path); path == "/mqtt" {
			s.broker.ServeHTTP(w, r)
			return
		}
		api.ServeHTTP(w, r)
	})
}
