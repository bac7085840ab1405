package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
)

// Entries is what the door needs of the log.
type Entries interface {
	AddEntry(ctx context.Context, e audit.Entry) error
	Entries(ctx context.Context, after int64, limit int) ([]audit.Entry, error)
}

// Entry is a line of the log as the API shows it.
type Entry struct {
	Seq     int64               `json:"seq"`
	At      time.Time           `json:"at"`
	Kind    string              `json:"kind"`
	Actor   watchword.SubjectID `json:"actor,omitempty"`
	Key     watchword.KeyID     `json:"key,omitempty"`
	Object  string              `json:"object,omitempty"`
	Outcome audit.Outcome       `json:"outcome"`
	Code    watchword.Code      `json:"code,omitempty"`
	Trace   string              `json:"trace,omitempty"`
	Data    map[string]string   `json:"data,omitempty"`
}

func (a *API) auditRoutes() {
	type auditListIn struct {
		After int64 `query:"after" minimum:"0"`
		Limit int   `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	}
	type auditListOut struct {
		Body struct {
			Entries []Entry `json:"entries"`
		}
	}
	register(a, operation{method: http.MethodGet, path: "/v1/audit", summary: "Entries of the log, oldest first"},
		func(ctx context.Context, c *caller, in *auditListIn) (*auditListOut, error) {
			rows, err := a.Entries.Entries(ctx, in.After, in.Limit)
			if err != nil {
				return nil, err
			}
			out := &auditListOut{}
			out.Body.Entries = []Entry{}
			for _, e := range rows {
				out.Body.Entries = append(out.Body.Entries, Entry{
					e.Seq, e.At.UTC(), e.Kind, e.Actor, e.Key, e.Object, e.Outcome, e.Code, e.Trace, e.Data,
				})
			}
			return out, nil
		})
}
