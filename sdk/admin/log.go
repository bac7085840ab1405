package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/rest"
)

// LogQuery selects entries; empty fields select all.
type LogQuery struct {
	Subject watchword.SubjectID // actor or object
	Object  string
	Kind    string // one kind, or a group as "device.*"
	Cause   string // the code of a refusal, or the cause of a session's end
	From    time.Time
	To      time.Time
	After   int64
	Before  int64
	Newest  bool // newest first
}

func (q LogQuery) values() url.Values {
	v := url.Values{}
	set := func(name, s string) {
		if s != "" {
			v.Set(name, s)
		}
	}
	set("subject", string(q.Subject))
	set("object", q.Object)
	set("kind", q.Kind)
	set("cause", q.Cause)
	if !q.From.IsZero() {
		v.Set("from", q.From.UTC().Format(time.RFC3339Nano))
	}
	if !q.To.IsZero() {
		v.Set("to", q.To.UTC().Format(time.RFC3339Nano))
	}
	if q.After > 0 {
		v.Set("after", strconv.FormatInt(q.After, 10))
	}
	if q.Before > 0 {
		v.Set("before", strconv.FormatInt(q.Before, 10))
	}
	if q.Newest {
		v.Set("order", "newest")
	}
	return v
}

// Entries returns up to limit entries of the log after a number, oldest first.
func (c *Client) Entries(ctx context.Context, after int64, limit int) ([]api.Entry, error) {
	return c.FindEntries(ctx, LogQuery{After: after}, limit)
}

// FindEntries returns up to limit entries that q selects.
func (c *Client) FindEntries(ctx context.Context, q LogQuery, limit int) ([]api.Entry, error) {
	const page = 1000
	all := []api.Entry{}
	for pages := newPages(); len(all) < limit; {
		want := min(limit-len(all), page)
		v := q.values()
		v.Set("limit", strconv.Itoa(want))
		var got api.EntryList
		if _, err := c.rest.JSON(ctx, rest.Request{Method: http.MethodGet, Path: "/v1/audit", Query: v, Max: 8 << 20}, nil, &got); err != nil {
			return nil, err
		}
		all = append(all, got.Entries...)
		if got.NextPageToken == "" || len(got.Entries) == 0 {
			break
		}
		if err := pages.next(ctx, got.NextPageToken, len(got.Entries)); err != nil {
			return nil, err
		}
		if last := all[len(all)-1].Seq; q.Newest {
			q.Before = last
		} else {
			q.After = last
		}
	}
	return all, nil
}

// Entry returns one entry with its body. Code: not_found.
func (c *Client) Entry(ctx context.Context, seq int64) (e api.EntryDetail, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/audit/"+strconv.FormatInt(seq, 10), nil, nil, &e)
	return e, err
}

// FollowLog calls f for each new entry that q selects, from after q.After (0: now) on, until ctx ends, f returns an error or
// the server refuses the stream. A stream that was open and is lost goes on after the last entry that was read: see
// [Options.StreamLost].
func (c *Client) FollowLog(ctx context.Context, q LogQuery, opened func(), f func(api.Entry) error) error {
	return c.stream(ctx, streamRequest{path: "/v1/audit", query: q.values(), opened: opened, on: map[string]func([]byte) error{"entry": func(data []byte) error {
		var e api.Entry
		if err := json.Unmarshal(data, &e); err != nil {
			return err
		}
		return f(e)
	}}})
}

// maxExportLine is the maximum size of a line of an export in bytes: a policy's text, escaped twice.
const maxExportLine = 1 << 20

// ExportLog writes the log as JSON lines; entries that q does not select are written as hashes only. Codes: too_large for a
// line of over 1 MiB; unavailable if the export breaks off, or sends nothing for 90 s.
func (c *Client) ExportLog(ctx context.Context, q LogQuery, w io.Writer) error {
	res, err := c.rest.Stream(ctx, rest.Request{Method: http.MethodGet, Path: "/v1/audit/export", Query: q.values()})
	if err != nil {
		return err
	}
	defer res.Close()
	err = res.Lines(maxExportLine, func(line []byte) error {
		_, err := w.Write(line)
		return err
	})
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = watchword.Wrap(err, watchword.Unavailable, "the export ended before its checkpoint")
	}
	return err
}

// Proof returns the proof that an entry is in the log, as text.
func (c *Client) Proof(ctx context.Context, seq int64) ([]byte, error) {
	a, err := c.rest.Do(ctx, rest.Request{Method: http.MethodGet, Path: "/v1/audit/" + strconv.FormatInt(seq, 10) + "/proof"})
	if err != nil {
		return nil, err
	}
	return a.Body, nil
}

// Evidence returns the evidence that a command was ordered, handed over and answered, as one file that can be verified with
// the root's public key alone. Codes: conflict before there is a receipt, not_found.
func (c *Client) Evidence(ctx context.Context, id watchword.CommandID) ([]byte, error) {
	a, err := c.rest.Do(ctx, rest.Request{Method: http.MethodGet, Path: "/v1/commands/" + url.PathEscape(string(id)) + "/evidence", Max: 8 << 20})
	if err != nil {
		return nil, err
	}
	return a.Body, nil
}

// LogFile fetches the file at a path below the log's URL, as "checkpoint".
func (c *Client) LogFile(ctx context.Context, path string) ([]byte, error) {
	a, err := c.rest.Do(ctx, rest.Request{Method: http.MethodGet, Path: "/log/" + path})
	if err != nil {
		return nil, err
	}
	return a.Body, nil
}
