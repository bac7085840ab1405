package httpapi

import (
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/internal/truncate"
)

// oauthForm reads the form of an OAuth endpoint, within the rate limit of its address. A duplicate
// parameter is refused (RFC 6749 §3.2), except resource, as is a parameter in the URL. Codes:
// rate_limited, unsupported_media_type, too_large, bad_request.
func (a *API) oauthForm(r *http.Request) (url.Values, error) {
	if err := a.rates.Take(fair.Network(requestInfoOf(r.Context()).remote), a.Now()); err != nil {
		return nil, err
	}
	if ct, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); !strings.EqualFold(strings.TrimSpace(ct), "application/x-www-form-urlencoded") {
		return nil, watchword.Refuse(watchword.UnsupportedMediaType, "send application/x-www-form-urlencoded")
	}
	if r.URL.RawQuery != "" {
		return nil, watchword.RefuseField("query", "parameters go into the body")
	}
	if err := requestInfoOf(r.Context()).writer.chargeRequestBody(r); err != nil {
		return nil, err
	}
	r.Body = http.MaxBytesReader(nil, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, watchword.Wrap(err, watchword.TooLarge, "the body may have at most 16384 bytes")
		}
		return nil, watchword.Wrap(err, watchword.BadRequest, "the body is not a valid form")
	}
	for name, values := range r.PostForm {
		if len(values) > 1 && name != "resource" {
			return nil, watchword.RefuseField(truncate.LogText(name), "is given twice")
		}
	}
	return r.PostForm, nil
}
