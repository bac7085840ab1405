package httpapi

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
)

// logRoutes serve the log as C2SP tlog-tiles.
func (a *API) logRoutes() {
	serve := func(pattern string, h func(w http.ResponseWriter, r *http.Request) error) {
		a.handle(route{pattern: pattern}, func(w http.ResponseWriter, r *http.Request, c *caller) error {
			if err := a.auditMirrorRead(r.Context(), c); err != nil {
				return err
			}
			return h(w, r)
		})
	}
	serve("GET /log/checkpoint", func(w http.ResponseWriter, _ *http.Request) error {
		_, note, err := a.Audit.Checkpoint()
		if err == nil {
			writePlain(w, "text/plain; charset=utf-8", "no-cache", note)
		}
		return err
	})
	serve("GET /log/tile/{path...}", a.logTile)
}

func (a *API) logTile(w http.ResponseWriter, r *http.Request) error {
	level, n, width, err := ledger.ParsePath(strings.TrimPrefix(r.URL.Path, "/log/"))
	if err != nil {
		return err
	}
	b, err := a.Audit.Tile(r.Context(), level, n, width)
	if err == nil {
		writePlain(w, "application/octet-stream", "private, max-age=31536000, immutable", b)
	}
	return err
}

// mirrorAuditInterval is how long one audit entry covers the reads of one mirror.
const mirrorAuditInterval = time.Hour

type mirrorReader struct {
	tenant  watchword.TenantID
	subject watchword.SubjectID
	key     watchword.KeyID
}

// auditMirrorRead is [API.auditRead] for the many reads of a mirror: one entry for each reader and
// hour.
func (a *API) auditMirrorRead(ctx context.Context, c *caller) error {
	actor, now := mirrorReader{c.Tenant(), c.Subject(), c.Key()}, a.Now()
	a.mirrorReads.Lock()
	defer a.mirrorReads.Unlock() // concurrent reads of the same mirror wait until the entry is written
	if last, ok := a.mirrorReads.last.Get(actor); ok && now.Sub(last) < mirrorAuditInterval {
		return nil
	}
	if err := a.auditRead(ctx, c, "mirror", "/log/"); err != nil {
		return err
	}
	a.mirrorReads.last.Put(actor, now)
	return nil
}
