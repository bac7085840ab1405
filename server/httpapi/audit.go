package httpapi

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/truncate"
	"github.com/watchword-iot/watchword/server/audit"
)

// Entries is the part of the store that reads and writes audit entries.
type Entries interface {
	AddEntry(ctx context.Context, es ...audit.Entry) error
	Records(ctx context.Context, after int64, limit int) ([]audit.Record, error)
	Find(ctx context.Context, q audit.Query, p audit.Page) ([]audit.Record, error)
}

func viewEntry(r audit.Record) (api.Entry, error) {
	if r.Pruned() {
		return api.Entry{Seq: r.Seq, Pruned: true}, nil
	}
	e, err := r.Entry()
	at := e.At.UTC()
	return api.Entry{
		Seq: r.Seq, At: &at, Kind: e.Kind, Actor: e.Actor, Key: e.Key, Object: e.Object, Outcome: string(e.Outcome), Code: e.Code, Trace: e.Trace, Data: e.Data,
	}, err
}

func (a *API) auditRoutes() {
	a.handle(route{pattern: "GET /v1/audit", stream: func(r *http.Request) string {
		if wantsStream(r) {
			return streamTransport
		}
		return requestTransport
	}}, a.listEntries)
	a.describe(http.MethodGet, "/v1/audit", "List the entries of the audit log that subject, object, kind (device.*), cause, from and to select: oldest first after a number, or with order=newest before one; or a stream of server-sent events", nil)
	a.handle(route{pattern: "GET /v1/audit/export", stream: func(*http.Request) string { return exportTransport }}, a.exportEntries)
	a.describe(http.MethodGet, "/v1/audit/export", "Export the audit log as JSON lines, which audit verify checks; entries that are not selected have only their hash", nil)

	type entryIn struct {
		Seq int64 `path:"seq" minimum:"1"`
	}
	type entryOut struct{ Body api.EntryDetail }
	register(a, operation{method: http.MethodGet, path: "/v1/audit/{seq}", summary: "Get one entry of the audit log with its body"},
		func(ctx context.Context, c *caller, in *entryIn) (*entryOut, error) {
			if err := a.auditRead(ctx, c, "show", strconv.FormatInt(in.Seq, 10)); err != nil {
				return nil, err
			}
			e, err := a.entryDetail(ctx, c, in.Seq)
			return &entryOut{e}, err
		})
	a.handle(route{pattern: "GET /v1/audit/{seq}/proof"}, func(w http.ResponseWriter, r *http.Request, c *caller) error {
		seq, err := strconv.ParseInt(r.PathValue("seq"), 10, 64)
		if err != nil || seq < 1 {
			return watchword.RefuseField("seq", "must be the number of an entry")
		}
		if err := a.auditRead(r.Context(), c, "prove", r.PathValue("seq")); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(r.Context(), writeTimeout/2)
		defer cancel()
		if _, err := a.tenantEntry(ctx, c, seq); err != nil {
			return err
		}
		p, err := a.Audit.Prove(ctx, seq)
		if err != nil {
			return err
		}
		writePlain(w, "text/plain; charset=utf-8", "no-store", p.Marshal())
		return nil
	})
	a.describe(http.MethodGet, "/v1/audit/{seq}/proof", "Get a proof (C2SP tlog-proof) that the log contains the entry; its extra data are salt and body", nil)
}

// auditRead writes an audit entry of a read of the log, before the caller gets anything.
func (a *API) auditRead(ctx context.Context, c *caller, what, object string) error {
	return a.Entries.AddEntry(ctx, c.actor.DoneEntry(audit.LogRead, object, a.Now(), map[string]string{"what": what, "remote": c.remote}))
}

// writePlain writes bytes as the answer.
func writePlain(w http.ResponseWriter, contentType, cache string, b []byte) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", cache)
	h.Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(b) // the error means that the client has closed the connection
}

// tenantEntry returns an entry of the caller's tenant, or a pruned one, whose tenant is unknown. Code: not_found, also for
// one of another tenant.
func (a *API) tenantEntry(ctx context.Context, c *caller, seq int64) (audit.Record, error) {
	rs, err := a.Entries.Records(ctx, seq-1, 1)
	if err != nil {
		return audit.Record{}, err
	}
	if len(rs) == 1 && rs[0].Seq == seq {
		if rs[0].Pruned() {
			return rs[0], nil
		}
		if e, err := rs[0].Entry(); err != nil || e.Tenant == c.Tenant() {
			return rs[0], err
		}
	}
	return audit.Record{}, watchword.Refuse(watchword.NotFound, "entry %d not found", seq)
}

func (a *API) entryDetail(ctx context.Context, c *caller, seq int64) (out api.EntryDetail, err error) {
	r, err := a.tenantEntry(ctx, c, seq)
	if err != nil {
		return out, err
	}
	if out.Entry, err = viewEntry(r); err != nil {
		return out, err
	}
	out.Hash = r.Hash[:]
	if r.Pruned() {
		return out, nil
	}
	out.Salt, out.Body = r.Salt[:], string(r.Body)
	if out.Kind != audit.CommandOrder {
		return out, nil
	}
	row, err := a.Commands.Command(ctx, c.Tenant(), watchword.CommandID(out.Object))
	may := a.mayRead(c, row, http.MethodGet, "")
	if err != nil || may(c.Authority) != nil {
		return out, nil // permission to read the log does not include the arguments of commands
	}
	if err := c.session.require(may); err != nil {
		return out, err
	}
	args, salt, err := a.Commands.ArgsCommitment(row)
	if err != nil {
		return out, err
	}
	out.Args, out.ArgsSalt = args, salt
	return out, nil
}

// Limits of a list of entries.
const maxEntries = 1000

const (
	entryBatch   = 64       // entries read from the store at once; one may have more than 64 KiB
	exportBuffer = 64 << 10 // bytes that an export buffers before it writes
)

// parseAuditQuery parses the query parameters of a list of entries. Code: bad_request, with the
// parameter in Field.
func parseAuditQuery(v url.Values) (q audit.Query, p audit.Page, err error) {
	p.Limit = 100
	var token int64
	for name, values := range v {
		s := values[0]
		if len(values) > 1 || len(s) > 256 {
			return q, p, watchword.RefuseField(name, "must be given once, with at most 256 bytes")
		}
		switch name {
		case "subject":
			q.Subject = watchword.SubjectID(s)
		case "object":
			q.Object = s
		case "kind":
			q.Kind = s
		case "cause":
			q.Cause = s
		case "from":
			q.From, err = parseTime(name, s)
		case "to":
			q.To, err = parseTime(name, s)
		case "after":
			p.After, err = parseNumber(name, s, 1<<53)
		case "before":
			p.Before, err = parseNumber(name, s, 1<<53)
		case "limit", "page_size":
			var n int64
			if n, err = parseNumber(name, s, maxEntries); n < 1 && err == nil {
				err = watchword.RefuseField(name, "must be at least 1")
			}
			p.Limit = int(n)
		case "page_token":
			token, err = parseNumber(name, s, 1<<53)
		case "order":
			if p.Newest = s == "newest"; !p.Newest && s != "oldest" {
				err = watchword.RefuseField(name, "must be newest or oldest")
			}
		default:
			err = watchword.RefuseField(truncate.LogText(name), "is not supported at this path")
		}
		if err != nil {
			return q, p, err
		}
	}
	switch {
	case token > 0 && p.Newest:
		p.Before = token
	case token > 0:
		p.After = token
	}
	return q, p, q.Check()
}

func parseNumber(name, s string, limit int64) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > limit {
		return 0, watchword.RefuseField(name, "must be a number from 0 to %d", limit)
	}
	return n, nil
}

func parseTime(name, s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, watchword.RefuseField(name, "must be a time such as 2026-11-25T12:00:00Z (RFC 3339)")
	}
	return t, nil
}

// describeQuery describes a query for the audit entry of [API.auditRead].
func describeQuery(v url.Values) string {
	keep := url.Values{}
	for k, s := range v {
		keep.Set(k, truncate.LogText(s[0]))
	}
	return keep.Encode()
}

func (a *API) listEntries(w http.ResponseWriter, r *http.Request, c *caller) error {
	q, p, err := parseAuditQuery(r.URL.Query())
	if err != nil {
		return err
	}
	q.Tenant = c.Tenant()
	if wantsStream(r) {
		return a.streamEntries(w, r, c, q, p)
	}
	if err := a.auditRead(r.Context(), c, "list", describeQuery(r.URL.Query())); err != nil {
		return err
	}
	rows, some, err := a.findEntries(r.Context(), q, p)
	if err != nil {
		return err
	}
	out := api.EntryList{Entries: []api.Entry{}}
	for _, row := range rows {
		e, err := viewEntry(row)
		if err != nil {
			return err
		}
		out.Entries = append(out.Entries, e)
	}
	var more bool
	if out.Entries, more, err = cutPage(out.Entries, p.Limit); err != nil {
		return err
	}
	if n := len(out.Entries); more || some || n > 0 && n == p.Limit { // the next page is read only where a client asks for it
		out.NextPageToken = strconv.FormatInt(out.Entries[n-1].Seq, 10)
	}
	writeAnswer(w, http.StatusOK, out)
	return nil
}

// findEntries reads at least as many entries as one page of the answer holds. some says that there
// may be more, up to the limit.
func (a *API) findEntries(ctx context.Context, q audit.Query, p audit.Page) (all []audit.Record, some bool, err error) {
	for left, bytes := p.Limit, 0; left > 0; {
		if bytes > pageBytes {
			return all, true, nil
		}
		p.Limit = min(left, entryBatch)
		rows, err := a.Entries.Find(ctx, q, p)
		if err != nil {
			return nil, false, err
		}
		for _, row := range rows {
			bytes += len(row.Body)
		}
		all = append(all, rows...)
		if len(rows) < p.Limit {
			break
		}
		left -= len(rows)
		if last := rows[len(rows)-1].Seq; p.Newest {
			p.Before = last
		} else {
			p.After = last
		}
	}
	return all, false, nil
}

// streamEntries streams matching entries as they are logged, from the Last-Event-ID, the parameter
// after, or the current end of the log on.
func (a *API) streamEntries(w http.ResponseWriter, r *http.Request, c *caller, q audit.Query, p audit.Page) error {
	if p.Newest || p.Before > 0 {
		return watchword.RefuseField("order", "must be oldest for a stream")
	}
	last := r.Header.Get("Last-Event-ID")
	switch {
	case last != "":
		var err error
		if p.After, err = parseNumber("Last-Event-ID", last, 1<<53); err != nil {
			return err
		}
	case !r.URL.Query().Has("after"):
		if cp, _, err := a.Audit.Checkpoint(); err == nil {
			p.After = cp.Size
		}
	}
	if err := a.auditRead(r.Context(), c, "stream", describeQuery(r.URL.Query())); err != nil {
		return err
	}
	ctx := c.ctx
	out := newStream(c)
	if out.send("session", strconv.FormatInt(p.After, 10), sessionEvent(c.session.Session)) != nil {
		return nil // the client has closed the connection
	}
	p.Limit = entryBatch
	beat := time.NewTicker(sseKeepAlive)
	defer beat.Stop()
	for {
		grown := a.Audit.NextCheckpoint()
		size, err := a.sendEntries(ctx, out, q, &p)
		if reason := streamEnded(ctx); reason != nil { // the cause of the session's end is more precise than an error of the store
			err = reason
		}
		if err != nil {
			a.endStream(out, r, err)
			return nil
		}
		if p.After < size {
			continue // there are more entries
		}
		select {
		case <-grown:
		case <-beat.C:
			if out.keepAlive() != nil {
				return nil
			}
		case <-ctx.Done():
			a.endStream(out, r, streamEnded(ctx))
			return nil
		}
	}
}

// sendEntries sends one page of the entries that the last checkpoint covers, and advances p.
func (a *API) sendEntries(ctx context.Context, out *stream, q audit.Query, p *audit.Page) (size int64, err error) {
	cp, _, err := a.Audit.Checkpoint()
	if err != nil {
		return 0, nil // the first checkpoint is still being signed
	}
	p.Before = cp.Size + 1
	rows, err := a.Entries.Find(ctx, q, *p)
	if err != nil {
		return 0, err
	}
	for _, row := range rows {
		e, err := viewEntry(row)
		if err == nil {
			err = out.send("entry", strconv.FormatInt(row.Seq, 10), e)
		}
		if err != nil {
			return 0, err
		}
		p.After = row.Seq
	}
	if len(rows) < p.Limit {
		p.After = max(p.After, cp.Size)
	}
	return cp.Size, nil
}

// exportEntries writes the log as JSON lines: one entry each, then the checkpoint over them.
func (a *API) exportEntries(w http.ResponseWriter, r *http.Request, c *caller) error {
	v := r.URL.Query()
	q, p, err := parseAuditQuery(v)
	if err != nil {
		return err
	}
	q.Tenant = c.Tenant()
	for _, name := range []string{"after", "before", "limit", "order"} {
		if v.Has(name) {
			return watchword.RefuseField(name, "is not supported for exports: an export covers the whole log")
		}
	}
	if err := a.auditRead(r.Context(), c, "export", describeQuery(v)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), writeTimeout/2)
	defer cancel()
	cp, note, err := a.Audit.CheckpointNow(ctx)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "application/jsonl")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	for p.After < cp.Size {
		rows, err := a.Entries.Records(r.Context(), p.After, int(min(entryBatch, cp.Size-p.After)))
		if err != nil || len(rows) == 0 {
			a.Log.ErrorContext(r.Context(), "an export broke off", slog.Int64("after", p.After), slog.Any("err", err))
			panic(http.ErrAbortHandler) // an export without its last line does not verify, so the client sees that it is incomplete
		}
		var b bytes.Buffer
		for _, row := range rows {
			if writeJSON(&b, audit.NewExportLine(row, q)); b.Len() < exportBuffer {
				continue
			}
			if _, err := w.Write(b.Bytes()); err != nil {
				return nil // the client has closed the connection, or has lost the permission to read
			}
			b.Reset()
		}
		if _, err := w.Write(b.Bytes()); err != nil {
			return nil // the client has closed the connection, or has lost the permission to read
		}
		p.After = rows[len(rows)-1].Seq
		if r.Context().Err() != nil {
			return nil // the client has closed the connection; where the session has ended, the next write is refused and the export stays incomplete
		}
	}
	writeJSON(w, audit.ExportLine{Checkpoint: string(note)})
	return nil
}
