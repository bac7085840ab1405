package server

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
)

// publicURL returns the public URL of a server with these issuers: the current issuer, unless the configuration changed the address of
// a server that never moved. Code: config_invalid where server.public_url is no issuer of this server.
func publicURL(cfg Config, set *watchword.IssuerSet, log *slog.Logger) (string, error) {
	current := set.Current(watchword.DefaultTenant)
	configured := cfg.PublicURL()
	switch {
	case sameURL(configured, current):
		return current, nil
	case cfg.Server.PublicURL != "" && !slices.ContainsFunc(set.Past(), func(a watchword.AcceptedIssuer) bool { return sameURL(configured, string(a.Issuer)) }):
		return "", watchword.Refuse(watchword.ConfigInvalid, "server.public_url is %s, but the issuer of this server is %s, which is part of every token: move it with watchword address move %s, while server.public_url is as it was", configured, current, configured)
	case set.Moved():
		if cfg.Server.PublicURL != "" {
			log.Warn("server.public_url names a former address: set it to the current one", slog.String("public_url", configured), slog.String("issuer", current))
		}
		return current, nil
	}
	return configured, nil
}

// url returns the public URL as it is now.
func (s *Server) url() string {
	if set := s.keys.Issuers(); set.Moved() {
		return set.Current(watchword.DefaultTenant)
	}
	return s.info.URL
}

// certificateNames returns the names of the server's own certificate: those of the configuration and of the issuers that are
// accepted.
func (s *Server) certificateNames() []string {
	out := s.cfg.Server.names()
	for _, i := range s.keys.Issuers().Accepted(watchword.DefaultTenant, s.o.Now()) {
		if n, err := canonicalName(hostOf(i)); err == nil && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// checkAddress returns the canonical form of a URL that the server may move to. Code: bad_request.
func (s *Server) checkAddress(address string) (string, error) {
	u, err := canonicalURL(address)
	if err != nil {
		return "", watchword.RefuseField("url", "%s", err)
	}
	for _, hosts := range s.o.Tenants {
		if slices.ContainsFunc(hosts, func(h string) bool { return canonicalHost(h) == hostOf(u) }) {
			return "", watchword.RefuseField("url", "must not have the host name of a tenant, and %s is one", hostOf(u))
		}
	}
	if s.certFiles != nil {
		if err := s.certFiles.verifyName(hostOf(u)); err != nil {
			return "", &watchword.Error{Code: watchword.BadRequest, Field: "url", Detail: "must be a name of the certificate of server.tls_cert: put one for both names there first", Err: err}
		}
	}
	if s.acme != nil {
		if err := s.acme.VerifyName(hostOf(u)); err != nil {
			return "", &watchword.Error{Code: watchword.BadRequest, Field: "url", Detail: "must be a name of the public certificate: add it to server.acme_domain beside the former one, and wait until the certificate has both", Err: err}
		}
	}
	return u, nil
}

// addressWarnBefore is how long before its end the server says that devices still use a former issuer.
const addressWarnBefore = 7 * 24 * time.Hour

// watchAddress says once a day, in the week before the end of a former issuer, how many devices still use it, and once when it has
// ended. It is called by one goroutine.
func (s *Server) watchAddress(ctx context.Context, now time.Time) error {
	set := s.keys.Issuers()
	if !set.Moved() {
		return nil
	}
	for _, former := range set.Past() {
		left := former.Until.Sub(now)
		last := s.addressWarned[former.Issuer]
		switch {
		case left <= 0 && left > -24*time.Hour && !s.addressEnded[former.Issuer]:
			s.addressEnded[former.Issuer] = true
			s.o.Log.InfoContext(ctx, "a former address is not accepted any more", slog.String("issuer", string(former.Issuer)), slog.Time("until", former.Until))
		case left > 0 && left <= addressWarnBefore && (last.IsZero() || now.Sub(last) >= 24*time.Hour):
			devices, unseen := 0, 0
			for _, t := range s.o.tenants() {
				seen, never, err := s.store.IssuerUse(ctx, t)
				if err != nil {
					return err
				}
				devices, unseen = devices+seen[former.Issuer.Of(t)], unseen+never
			}
			s.addressWarned[former.Issuer] = now
			if devices+unseen > 0 {
				s.o.Log.WarnContext(ctx, "a former address ends soon, and devices have not followed to the new one",
					slog.String("issuer", string(former.Issuer)), slog.Time("until", former.Until), slog.Int("devices", devices), slog.Int("unseen", unseen))
			}
		}
	}
	return nil
}
