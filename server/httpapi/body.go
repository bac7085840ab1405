package httpapi

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/token"
)

// readBody reads a request body of the given content type (empty: any) and at most so many bytes.
// Codes: unsupported_media_type, too_large, bad_request; busy where the memory limit of bodies is
// reached.
func readBody(w http.ResponseWriter, r *http.Request, want string, limit int64) ([]byte, error) {
	if want != "" {
		ct, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if err != nil || ct != want {
			return nil, watchword.Refuse(watchword.UnsupportedMediaType, "Content-Type must be %s", want)
		}
	}
	if err := requestInfoOf(r.Context()).writer.chargeRequestBody(r); err != nil {
		return nil, err
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err == nil {
		return body, nil
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, watchword.Wrap(err, watchword.TooLarge, "the request body must have at most %d bytes", limit)
	}
	return nil, &watchword.Error{Code: watchword.BadRequest, Field: "body", Detail: "must be complete, as long as Content-Length says", Err: err}
}

// checkClientID refuses a client_id that differs from the assertion's sub (RFC 7521 §4.2).
func checkClientID(clientID, assertion string) error {
	if clientID == "" {
		return nil
	}
	p, err := token.ParseAssertion(assertion, true)
	if err != nil {
		return err
	}
	if string(p.Subject()) != clientID {
		return watchword.Refuse(watchword.ClientInvalid, "client_id must be equal to the assertion's sub")
	}
	return nil
}

// etag formats a version as an entity tag (RFC 9110 §8.8.3).
func etag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// ifMatch parses an If-Match header. It returns none where the header is absent or "*". Code:
// bad_request.
func ifMatch(header string, none int64) (int64, error) {
	header = strings.TrimSpace(header)
	if header == "" || header == "*" {
		return none, nil
	}
	v, err := strconv.ParseInt(strings.Trim(header, `"`), 10, 64)
	if err != nil || v < 0 || etag(v) != header {
		return 0, watchword.RefuseField("If-Match", "must be the ETag of the version that was read, in quotation marks")
	}
	return v, nil
}
