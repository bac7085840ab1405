package acme

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// How often the authority is asked when to renew (RFC 9773 §4.3.3), unless it says otherwise; and after a failure.
const (
	askEvery    = 6 * time.Hour
	askSoonest  = time.Hour
	askLatest   = 24 * time.Hour
	askAgain    = time.Hour
	maxRequests = 2 // of one question
)

// renewalWindow is when the authority suggests to renew a certificate (RFC 9773); zero: it suggests nothing.
type renewalWindow struct {
	start, end time.Time
	asked      time.Time // when it was asked
	next       time.Time // when it is asked again
}

// look asks the authority when the certificate is to be renewed, where that is due. An authority that wants to revoke certificates says
// so there, and one without an answer changes nothing.
func (m *Manager) look(ctx context.Context, now time.Time) {
	m.mu.Lock()
	c, w := m.cert, m.window
	m.mu.Unlock()
	if c == nil || !c.validAt(now) || now.Before(w.next) && !now.Before(w.asked) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, maxRequests*exchangeTimeout)
	defer cancel()
	start, end, after, err := m.renewalInfo(ctx, c)
	w.asked, w.next = now, now.Add(after)
	if err != nil {
		w.next = now.Add(askAgain)
		m.o.Log.Debug("the authority did not say when to renew the certificate", slog.String("directory", m.c.Directory), slog.String("err", errorText(err)))
	} else {
		w.start, w.end = start, end
	}
	m.mu.Lock()
	m.window = w
	m.mu.Unlock()
}

// renewalInfo asks for the window of a certificate, and when to ask again. An authority without RFC 9773 has none.
func (m *Manager) renewalInfo(ctx context.Context, c *certificate) (start, end time.Time, after time.Duration, err error) {
	after = askEvery
	var directory struct {
		RenewalInfo string `json:"renewalInfo"`
	}
	if _, err := m.getJSON(ctx, m.c.Directory, &directory); err != nil || directory.RenewalInfo == "" {
		return start, end, after, err
	}
	var info struct {
		Window struct {
			Start time.Time `json:"start"`
			End   time.Time `json:"end"`
		} `json:"suggestedWindow"`
	}
	h, err := m.getJSON(ctx, strings.TrimRight(directory.RenewalInfo, "/")+"/"+c.renewalID(), &info)
	if err != nil {
		return start, end, after, err
	}
	if s, err := strconv.Atoi(h.Get("Retry-After")); err == nil {
		after = min(max(time.Duration(s)*time.Second, askSoonest), askLatest)
	}
	if start, end = info.Window.Start, info.Window.End; !start.Before(end) {
		return time.Time{}, time.Time{}, after, errors.New("the window has no length")
	}
	return start, end, after, nil
}

// renewalID returns the identifier of a certificate (RFC 9773 §4.1).
func (c *certificate) renewalID() string {
	enc := base64.RawURLEncoding
	serial := c.leaf().SerialNumber.Bytes()
	if len(serial) > 0 && serial[0]&0x80 != 0 { // as in DER: the first bit is the sign
		serial = append([]byte{0}, serial...)
	}
	return enc.EncodeToString(c.leaf().AuthorityKeyId) + "." + enc.EncodeToString(serial)
}

func (m *Manager) getJSON(ctx context.Context, url string, into any) (http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := m.http.Do(req)
	if err != nil {
		return nil, err
	}
	err = json.NewDecoder(res.Body).Decode(into)
	if res.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", res.StatusCode)
	}
	return res.Header, errors.Join(err, res.Body.Close())
}
