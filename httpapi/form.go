package httpapi

import (
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/watchword-iot/watchword"
)

// readForm reads the form of an OAuth request. A parameter twice is refused
// (RFC 6749 §3.2), as is one in the URL. Codes: unsupported_media_type, too_large,
// bad_request.
func readForm(r *http.Request) (url.Values, error) {
	if ct, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); !strings.EqualFold(strings.TrimSpace(ct), "application/x-www-form-urlencoded") {
		return nil, watchword.Refuse(watchword.UnsupportedMediaType, "send application/x-www-form-urlencoded")
	}
	if r.URL.RawQuery != "" {
		return nil, watchword.RefuseField("query", "parameters go into the body")
	}
	r.Body = http.MaxBytesReader(nil, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, watchword.Because(err, watchword.TooLarge, "a token request may have 16 KiB")
		}
		return nil, watchword.Because(err, watchword.BadRequest, "the body is no form")
	}
	for name, values := range r.PostForm {
		if len(values) > 1 {
			return nil, watchword.RefuseField(clip(name), "stands twice")
		}
	}
	return r.PostForm, nil
}
