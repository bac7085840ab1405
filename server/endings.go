package server

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
)

// endingNotice is how long before its end something is listed, and endingLogEvery how often the process log repeats the list.
const (
	endingNotice   = 7 * 24 * time.Hour
	endingLogEvery = 24 * time.Hour
)

// endings is the list of what ends within a week as housekeeping made it last, of all tenants.
type endings struct {
	mu     sync.Mutex
	lines  []string
	logged time.Time // when the list was in the log last
}

// endingOf returns what a tenant relies on and what ends within a week, the first first. The certificate and the trust bundle are
// the server's own: the default tenant has them. Code: unavailable.
func (s *Server) endingOf(ctx context.Context, t watchword.TenantID, now time.Time) ([]api.Ending, error) {
	until := now.Add(endingNotice)
	out := []api.Ending{}
	subjects, err := s.registry.AccessEnding(ctx, t, now, until)
	if err != nil {
		return nil, err
	}
	for _, sub := range subjects {
		kind := api.EndingOperatorKey
		if sub.Kind == watchword.Service {
			kind = api.EndingServiceKey
		}
		out = append(out, api.Ending{
			Kind: kind, Name: string(sub.ID), EndsAt: sub.AccessEnds(now).UTC(),
			Action: fmt.Sprintf("it is the last key of the %s: make a link for another one with watchword %s link %s", sub.Kind, sub.Kind, sub.ID),
		})
	}
	if t == watchword.DefaultTenant {
		out = append(out, s.ownEndings(now, until)...)
	}
	slices.SortStableFunc(out, func(a, b api.Ending) int { return a.EndsAt.Compare(b.EndsAt) })
	return out, nil
}

// ownEndings returns what of the server's own is not renewed by itself: the certificate in files, one of ACME that should have been
// renewed long before, and the trust bundle where the root is offline.
func (s *Server) ownEndings(now, until time.Time) (out []api.Ending) {
	if s.certFiles != nil {
		if end := s.certFiles.notAfter(); !end.After(until) {
			out = append(out, api.Ending{Kind: api.EndingTLSCertificate, Name: s.cfg.Server.TLSCert, EndsAt: end.UTC(), Action: "replace the files of server.tls_cert and server.tls_key"})
		}
	}
	if s.acme != nil {
		if st := s.acme.Status(); st.Late(now) {
			out = append(out, api.Ending{
				Kind: api.EndingTLSCertificate, Name: s.cfg.Server.AcmeDomain[0], EndsAt: st.NotAfter.UTC(),
				Action: "its renewal by ACME fails; after its end clients get the server's own certificate, which browsers and clients without the trust bundle refuse: " + cmp.Or(st.Err, "no order was made yet"),
			})
		}
	}
	if st := s.rotator.Status(now); st.Stale != "" {
		out = append(out, api.Ending{
			Kind: api.EndingTrustBundle, Name: st.Version.String(), EndsAt: st.BundleExpires.UTC(), Action: st.Stale + ": sign bundles with the offline root (watchword key plan, key sign, key import)",
		})
	}
	return out
}

// warnEndings makes the list of all tenants, and writes it to the process log where that is due.
func (s *Server) warnEndings(ctx context.Context, now time.Time) error {
	var lines []string
	s.endings.mu.Lock()
	due := now.Sub(s.endings.logged).Abs() >= endingLogEvery
	s.endings.mu.Unlock()
	for _, t := range s.o.tenants() {
		all, err := s.endingOf(ctx, t, now)
		if err != nil {
			return err
		}
		for _, e := range all {
			lines = append(lines, fmt.Sprintf("%s %s ends at %s: %s", e.Kind, e.Name, e.EndsAt.Format(time.RFC3339), e.Action))
			if due {
				s.o.Log.WarnContext(ctx, "something that is relied on ends within a week",
					slog.String("tenant", string(t)), slog.String("kind", string(e.Kind)), slog.String("name", e.Name), slog.Time("ends", e.EndsAt), slog.String("action", e.Action))
			}
		}
	}
	s.endings.mu.Lock()
	defer s.endings.mu.Unlock()
	s.endings.lines = lines
	if due {
		s.endings.logged = now
	}
	return nil
}

// endingWarnings returns the lines of the list as housekeeping made it last.
func (s *Server) endingWarnings() []string {
	s.endings.mu.Lock()
	defer s.endings.mu.Unlock()
	return s.endings.lines
}
