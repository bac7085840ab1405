package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"

	"github.com/watchword-iot/watchword"
)

// Lines publishes each line of r until it ends: as JSON where it is JSON, else as
// a JSON string. Empty lines are passed over. A line over 32 KiB ends it with
// code too_large; an error of publish ends it too.
func Lines(ctx context.Context, r io.Reader, publish func(ctx context.Context, v any) error) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 4<<10), watchword.MaxDocument)
	for s.Scan() {
		line := bytes.TrimSpace(s.Bytes())
		if len(line) == 0 {
			continue
		}
		var v any = string(line)
		if json.Valid(line) {
			v = json.RawMessage(line)
		}
		if err := publish(ctx, v); err != nil {
			return err
		}
	}
	if err := s.Err(); err == bufio.ErrTooLong {
		return watchword.Refuse(watchword.TooLarge, "a line may have 32 KiB")
	} else if err != nil {
		return err
	}
	return nil
}
