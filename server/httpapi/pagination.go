package httpapi

import (
	"encoding/base64"
	"encoding/json"

	"github.com/watchword-iot/watchword"
)

// Page holds the paging parameters of every list. Size is the most items of a page; Token is
// next_page_token of the page before, empty for the first page.
type Page struct {
	Size  int    `query:"page_size" minimum:"1" maximum:"1000" default:"100" doc:"a page has fewer where they would be more than 512 KiB"`
	Token string `query:"page_token" maxLength:"2048"`
}

// pageBytes limits the JSON of a page's items; a single larger item is still returned. The
// project's clients read at most 1 MiB.
const pageBytes = 512 << 10

// cutPage returns the first items of all: at most size, and at most pageBytes of JSON, but at least
// one. more says that items are left.
func cutPage[T any](all []T, size int) (page []T, more bool, err error) {
	bytes := 0
	for i := range all {
		if i == size {
			return all[:i], true, nil
		}
		b, err := json.Marshal(all[i])
		if err != nil {
			return nil, false, err
		}
		if bytes += len(b) + 1; i > 0 && bytes > pageBytes {
			return all[:i], true, nil
		}
	}
	return all, false, nil
}

// encodePageToken encodes the position where a list continues, as an opaque token.
func encodePageToken(place any) (string, error) {
	b, err := json.Marshal(place)
	return base64.RawURLEncoding.EncodeToString(b), err
}

// decodePageToken decodes what encodePageToken wrote. Code: bad_request.
func decodePageToken(token string, place any) error {
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err == nil {
		err = json.Unmarshal(b, place)
	}
	if err != nil {
		return watchword.RefuseField("page_token", "must be next_page_token of the page before, unchanged, for the same list")
	}
	return nil
}
