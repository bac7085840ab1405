package admin

import (
	"context"
	"net/http"
	"net/url"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
)

// SessionFilter selects sessions. The zero value selects all.
type SessionFilter struct {
	Subject     watchword.SubjectID // empty: of all subjects
	OnlyLive    bool
	OnlyOffline bool
	Transport   string // mqtt, sse, poll, wait or request; empty: all
}

// EachSession calls live for each live session on the node that answers, in order of id, and then offline for each offline
// session of an MQTT client, in order of subject and of client identifier. It keeps one page in memory, which the server
// limits to 512 KiB. A nil function is not called. It ends with the functions' error. Code: bad_request.
func (c *Client) EachSession(ctx context.Context, f SessionFilter, live func(api.Session) error, offline func(api.OfflineSession) error) error {
	q := url.Values{"page_size": {"500"}}
	if f.Subject != "" {
		q.Set("subject", string(f.Subject))
	}
	if f.Transport != "" {
		q.Set("transport", f.Transport)
	}
	switch {
	case f.OnlyLive && f.OnlyOffline:
		return nil
	case f.OnlyLive:
		q.Set("online", "true")
	case f.OnlyOffline:
		q.Set("online", "false")
	}
	// A session with many subscriptions is listed in parts, one after the other: it is complete when another one follows.
	var lastLive *api.Session
	var lastOffline *api.OfflineSession
	endLive := func() (err error) {
		if lastLive != nil && live != nil {
			err = live(*lastLive)
		}
		lastLive = nil
		return err
	}
	endOffline := func() (err error) {
		if lastOffline != nil && offline != nil {
			err = offline(*lastOffline)
		}
		lastOffline = nil
		return err
	}
	for pages := newPages(); ; {
		var page api.SessionList
		if err := c.call(ctx, http.MethodGet, "/v1/sessions", q, nil, &page); err != nil {
			return err
		}
		for _, s := range page.Sessions {
			if lastLive != nil && lastLive.ID == s.ID && lastLive.MQTT != nil && s.MQTT != nil {
				lastLive.MQTT.Subscriptions = append(lastLive.MQTT.Subscriptions, s.MQTT.Subscriptions...)
				continue
			}
			if err := endLive(); err != nil {
				return err
			}
			lastLive = &s
		}
		for _, s := range page.Offline {
			if lastOffline != nil && lastOffline.Subject == s.Subject && lastOffline.MQTT.Client == s.MQTT.Client {
				lastOffline.MQTT.Subscriptions = append(lastOffline.MQTT.Subscriptions, s.MQTT.Subscriptions...)
				continue
			}
			if err := endLive(); err != nil {
				return err
			}
			if err := endOffline(); err != nil {
				return err
			}
			lastOffline = &s
		}
		if page.NextPageToken == "" {
			if err := endLive(); err != nil {
				return err
			}
			return endOffline()
		}
		if err := pages.next(ctx, page.NextPageToken, len(page.Sessions)+len(page.Offline)); err != nil {
			return err
		}
		q.Set("page_token", page.NextPageToken)
	}
}

// Sessions returns the live sessions on the node that answers, of one subject or of all if it is empty.
func (c *Client) Sessions(ctx context.Context, subject watchword.SubjectID) ([]api.Session, error) {
	out := []api.Session{}
	err := c.EachSession(ctx, SessionFilter{Subject: subject, OnlyLive: true}, func(s api.Session) error {
		out = append(out, s)
		return nil
	}, nil)
	return out, err
}

// AllSessions returns the live sessions on the node that answers, and the offline sessions of MQTT clients, of one subject or
// of all if it is empty. [Client.EachSession] reads many sessions without keeping them.
func (c *Client) AllSessions(ctx context.Context, subject watchword.SubjectID) ([]api.Session, []api.OfflineSession, error) {
	live, offline := []api.Session{}, []api.OfflineSession{}
	err := c.EachSession(ctx, SessionFilter{Subject: subject}, func(s api.Session) error {
		live = append(live, s)
		return nil
	}, func(s api.OfflineSession) error {
		offline = append(offline, s)
		return nil
	})
	return live, offline, err
}

// CloseSession ends one live session, or deletes an offline one. Code: not_found.
func (c *Client) CloseSession(ctx context.Context, id watchword.SessionID) error {
	return c.call(ctx, http.MethodDelete, "/v1/sessions/"+url.PathEscape(string(id)), nil, nil, nil)
}
