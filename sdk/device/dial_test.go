package device

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
)

func TestConnectionsHaveAPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := errors.New("refused")
		d := &Device{opts: Options{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, refused }}}
		made := func() (n int) {
			for {
				_, err := d.connect(t.Context(), "tcp", "x")
				if watchword.CodeOf(err) == watchword.Unavailable {
					return n
				}
				if !errors.Is(err, refused) {
					t.Fatal(err)
				}
				n++
			}
		}
		for _, c := range []struct {
			after time.Duration
			want  int
		}{{0, dialBurst}, {0, 0}, {dialEvery - 1, 0}, {1, 1}, {3 * dialEvery, 3}, {time.Hour, dialBurst}} {
			time.Sleep(c.after)
			if got := made(); got != c.want {
				t.Errorf("after another %v: %d connections, want %d", c.after, got, c.want)
			}
		}
	})
}
