package server

import (
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	xacme "golang.org/x/crypto/acme"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/server/acme"
)

// letsEncrypt is the directory of the CA that is used unless server.acme_directory names another one.
const letsEncrypt = xacme.LetsEncryptURL

// maxAcmeNames is the most names of a certificate that is ordered.
const maxAcmeNames = 100

// acmeNames returns server.acme_domain in its canonical form, without duplicates.
func (s ServerConfig) acmeNames() (out []string) {
	for _, n := range s.AcmeDomain {
		if n, err := canonicalName(n); err == nil && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// checkACME refuses an order that cannot succeed. Code: config_invalid.
func (s ServerConfig) checkACME() error {
	if len(s.AcmeDomain) == 0 {
		for _, k := range []struct {
			key string
			set bool
		}{
			{"server.acme_email", s.AcmeEmail != ""},
			{"server.acme_directory", s.AcmeDirectory != letsEncrypt},
			{"server.acme_accept_terms", s.AcmeAcceptTerms},
			{"server.acme_ca", s.AcmeCA != ""},
			{"server.acme_http", s.AcmeHTTP != ""},
			{"server.acme_eab_kid", s.AcmeEABKID != ""},
			{"server.acme_eab_key", s.AcmeEABKey != ""},
		} {
			if k.set {
				return configError(k.key, "is used only with server.acme_domain, which is not set")
			}
		}
		return nil
	}
	if s.TLSCert != "" {
		return configError("server.acme_domain", "must not be set together with server.tls_cert: the certificate comes from one of the two")
	}
	if len(s.AcmeDomain) > maxAcmeNames {
		return configError("server.acme_domain", "must have at most %d names", maxAcmeNames)
	}
	for _, n := range s.AcmeDomain {
		name, err := canonicalName(n)
		if err != nil {
			return configError("server.acme_domain", "%s", err)
		}
		if _, err := netip.ParseAddr(name); err == nil || name == "localhost" || strings.Contains(name, "_") {
			return configError("server.acme_domain", "must be DNS names that others can resolve, and not %q; addresses and local names are in server.names, and the server's own certificate has them", n)
		}
	}
	if u, err := url.Parse(s.AcmeDirectory); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return configError("server.acme_directory", "must be an https:// URL")
	}
	if local, domain, ok := strings.Cut(s.AcmeEmail, "@"); s.AcmeEmail != "" && (!ok || local == "" || domain == "" || len(s.AcmeEmail) > 254 || strings.ContainsFunc(s.AcmeEmail, notInEmail) || strings.Contains(domain, "@")) {
		return configError("server.acme_email", "must be one address such as admin@example.com")
	}
	if !s.AcmeAcceptTerms {
		return configError("server.acme_accept_terms", "must be true: the CA at %s issues certificates only to operators that accept its terms of service: read them (those of Let's Encrypt: https://letsencrypt.org/repository/), and set it", s.AcmeDirectory)
	}
	if s.AcmeHTTP != "" {
		if _, err := loopbackAddress(s.AcmeHTTP); err != nil {
			return configError("server.acme_http", `must be "HOST:PORT", such as ":80"`)
		}
	}
	if (s.AcmeEABKID == "") != (s.AcmeEABKey == "") {
		return configError("server.acme_eab_kid", "must be given together with server.acme_eab_key_file")
	}
	if _, err := s.eabKey(); s.AcmeEABKey != "" && err != nil {
		return err
	}
	return nil
}

// notInEmail reports whether a mailto: URL must not have a character: it would end the address, begin another one or be a header.
func notInEmail(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`,;?&%<>"`, r) }

// eabKey returns the key of the external account, which CAs give out in base64url with or without padding. Code: config_invalid.
func (s ServerConfig) eabKey() ([]byte, error) {
	key, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(s.AcmeEABKey), "="))
	if err != nil || len(key) < 16 {
		return nil, configError("server.acme_eab_key", "must be at least 16 bytes in base64url, as the CA gave it")
	}
	return key, nil
}

// openACME makes the manager of the certificate that is ordered by ACME. Codes: config_invalid, key_exposed, file_untrusted.
func (s *Server) openACME() error {
	c := s.cfg.Server
	conf := acme.Config{Directory: c.AcmeDirectory, Names: c.acmeNames(), Email: c.AcmeEmail, HTTP: c.AcmeHTTP != ""}
	if c.AcmeEABKID != "" {
		key, err := c.eabKey()
		if err != nil {
			return err
		}
		conf.External = &acme.External{KID: c.AcmeEABKID, Key: key}
	}
	roots, err := acmeRoots(c.AcmeCA)
	if err != nil {
		return err
	}
	s.acme, err = acme.New(conf, acme.Options{Dir: filepath.Join(s.cfg.Data, acmeFolder), Roots: roots, Now: s.o.Now, CheckClock: s.clock.Check, Log: s.o.Log})
	if _, ours := errors.AsType[*watchword.Error](err); err != nil && !ours {
		return watchword.Wrap(err, watchword.ConfigInvalid, "the folder %s cannot be created or read", filepath.Join(s.cfg.Data, acmeFolder))
	}
	for _, host := range slices.Compact([]string{hostOf(s.info.URL), hostOf("https://" + s.publicMQTTS(s.info.URL))}) {
		if host != "" && !slices.Contains(conf.Names, host) {
			s.o.Log.Warn("server.acme_domain does not have this name: clients that use it get the server's own certificate, which browsers and clients without the trust bundle refuse", slog.String("name", host))
		}
	}
	return err
}

// acmeRoots returns the system's authorities and those of a file; nil, the system's, without a file. Code: config_invalid, file_untrusted.
func acmeRoots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	b, err := durable.ReadTrusted(file, maxPEM)
	if watchword.CodeOf(err) == watchword.FileUntrusted {
		return nil, err
	}
	if err != nil {
		return nil, watchword.Wrap(err, watchword.ConfigInvalid, "server.acme_ca: %s cannot be read", file)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // a system without a list: the file is all there is
	}
	if !pool.AppendCertsFromPEM(b) {
		return nil, configError("server.acme_ca", "must be a file with at least one certificate in PEM")
	}
	return pool, nil
}

// newACMEServer returns the server of server.acme_http, which has no TLS and answers validations alone. m is nil where it is not used.
func newACMEServer(m *acme.Manager) *http.Server {
	h := newHTTPServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { m.ServeHTTP(w, r) }))
	h.ReadHeaderTimeout, h.ReadTimeout, h.WriteTimeout, h.IdleTimeout, h.MaxHeaderBytes = 5*time.Second, 5*time.Second, 5*time.Second, 5*time.Second, 8<<10
	h.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug) // malformed requests of anyone
	return h
}

func (s *Server) serveACME(l net.Listener) error {
	if err := s.acmeServer.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// acmeWarnings returns what /readyz says of the certificate that is ordered by ACME.
func (s *Server) acmeWarnings() []string {
	if s.acme == nil {
		return nil
	}
	st, now := s.acme.Status(), s.o.Now()
	var state string
	switch names := strings.Join(st.Missing, ", "); {
	case st.NotAfter.IsZero():
		state = fmt.Sprintf("there is no public certificate for %s yet", names)
	case now.After(st.NotAfter):
		state = fmt.Sprintf("the public certificate ended at %s", st.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(st.NotBefore):
		state = fmt.Sprintf("the public certificate is not valid before %s: compare the clock of this machine", st.NotBefore.UTC().Format(time.RFC3339))
	case names != "":
		state = fmt.Sprintf("the public certificate is not for %s yet", names)
	case st.Failures > 0:
		state = fmt.Sprintf("the public certificate, which ends at %s, was not renewed", st.NotAfter.UTC().Format(time.RFC3339))
	default:
		return nil
	}
	if st.Failures > 0 {
		state += fmt.Sprintf("; %d orders failed, the next one is made at %s; the last error: %s", st.Failures, st.Next.UTC().Format(time.RFC3339), st.Err)
	}
	return []string{state}
}

func (s *Server) acmeMetrics() []prometheus.Collector {
	return []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "watchword_acme_certificate_seconds", Help: "How long the certificate that was ordered by ACME is still valid; 0: there is none."}, func() float64 {
			if st := s.acme.Status(); !st.NotAfter.IsZero() {
				return max(st.NotAfter.Sub(s.o.Now()), 0).Seconds()
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "watchword_acme_failures", Help: "Orders by ACME that failed since the last one that succeeded."}, func() float64 {
			return float64(s.acme.Status().Failures)
		}),
	}
}
