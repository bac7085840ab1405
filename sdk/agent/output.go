package agent

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strings"
	"unicode/utf8"

	"github.com/watchword-iot/watchword"
)

// maxOutput is the maximum size of a program's output in the receipt, in bytes.
const maxOutput = 16 << 10

// outputBuffer stores the first maxOutput bytes and counts the rest.
type outputBuffer struct {
	head    bytes.Buffer // a field: an embedded Buffer would add ReadFrom, which stores everything
	dropped int
}

// Write never fails: otherwise SIGPIPE would end a program that prints too much.
func (o *outputBuffer) Write(b []byte) (int, error) {
	keep := min(len(b), maxOutput-o.head.Len())
	o.head.Write(b[:keep])
	o.dropped += len(b) - keep
	return len(b), nil
}

// text returns the stored output, with U+FFFD for invalid UTF-8: for the detail of a failure.
func (o *outputBuffer) text() string { return strings.ToValidUTF8(o.head.String(), "\uFFFD") }

// result returns the output, unchanged if it is JSON, else as {"output": TEXT}. Output that is not UTF-8, and text that
// would be too long in JSON, is {"output_base64": BYTES} (RFC 4648 §4), so that no byte changes. "left_out" is the number
// of bytes that were not stored.
func (o *outputBuffer) result() any {
	b := o.head.Bytes()
	left := o.dropped
	if left > 0 && len(b) > 0 { // the cut may have split a character
		for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
			if tail := b[len(b)-n:]; utf8.RuneStart(tail[0]) {
				if !utf8.FullRune(tail) {
					b, left = b[:len(b)-n], left+n
				}
				break
			}
		}
	}
	trimmed := bytes.TrimSpace(b)
	switch {
	case len(trimmed) == 0 && left == 0:
		return nil
	case left == 0 && utf8.Valid(trimmed) && json.Valid(trimmed):
		return json.RawMessage(trimmed)
	}
	out := map[string]any{}
	if text, err := json.Marshal(string(trimmed)); err == nil && utf8.Valid(b) && len(text) <= watchword.MaxDocument-1024 {
		out["output"] = json.RawMessage(text)
	} else {
		out["output_base64"] = base64.StdEncoding.EncodeToString(b)
	}
	if left > 0 {
		out["left_out"] = left
	}
	return out
}
