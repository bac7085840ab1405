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
		return nil, watchword.Refuse(watchword.UnsupportedMediaType, "Content-Type must be application/x-www-form-urlencoded")
	}
	if r.URL.RawQuery != "" {
		return nil, watchword.RefuseField("query", "must be empty: parameters go into the form")
	}
	if err := requestInfoOf(r.Context()).writer.chargeRequestBody(r); err != nil {
		return nil, err
	}
	r.Body = http.MaxBytesReader(nil, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, watchword.Wrap(err, watchword.TooLarge, "the request body must have at most %d bytes", maxForm)
		}
		return nil, &watchword.Error{Code: watchword.BadRequest, Field: "body", Detail: "must be a form in application/x-www-form-urlencoded", Err: err}
	}
	for name, values := range r.PostForm {
		if len(values) > 1 && name != "resource" {
			return nil, watchword.RefuseField(truncate.LogText(name), "must be given once")
		}
	}
	return r.PostForm, nil
}
