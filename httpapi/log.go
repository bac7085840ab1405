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
			if err := a.noteMirror(r.Context(), c); err != nil {
				return err
			}
			return h(w, r)
		})
	}
	serve("GET /log/checkpoint", func(w http.ResponseWriter, _ *http.Request) error {
		_, note, err := a.Audit.Checkpoint()
		if err == nil {
			plain(w, "text/plain; charset=utf-8", "no-cache", note)
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
		plain(w, "application/octet-stream", "private, max-age=31536000, immutable", b)
	}
	return err
}

// mirrorHour is how long one entry says that somebody mirrors the log.
const mirrorHour = time.Hour

type reader struct {
	subject watchword.SubjectID
	key     watchword.KeyID
}

// noteMirror is noteRead for what a mirror asks for a thousand times: one entry for
// each reader and hour.
func (a *API) noteMirror(ctx context.Context, c *caller) error {
	who, now := reader{c.Subject(), c.Key()}, a.Now()
	a.mirrors.Lock()
	defer a.mirrors.Unlock() // who asks meanwhile waits: their read is noted too before it is answered
	if last, ok := a.mirrors.last.Get(who); ok && now.Sub(last) < mirrorHour {
		return nil
	}
	if err := a.noteRead(ctx, c, "mirror", "/log/"); err != nil {
		return err
	}
	a.mirrors.last.Put(who, now)
	return nil
}
