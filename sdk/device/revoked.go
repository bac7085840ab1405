package device

import (
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
)

// revokedPause is how long a device that the server says is revoked asks for nothing; a
// tenth more or less, so that a fleet does not ask at once.
const revokedPause = 24 * time.Hour

// revocation is the server's statement that this device is revoked, and until when it stands
// without asking again. Only an authenticated server has that word: what an
// unauthenticated one says is unavailable (see rest.NewStranger).
type revocation struct {
	mu    sync.Mutex
	until time.Time // by the monotonic clock; zero: not revoked, as far as is known
}

// current returns the refusal that stands, with how long it does; nil for none.
func (r *revocation) current() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if left := time.Until(r.until); left > 0 {
		return &watchword.Error{Code: watchword.SubjectRevoked, Detail: "the server says that this device is revoked", RetryAfter: left}
	}
	return nil
}

// record notes a refusal and returns how long it stands. again reports whether it is a new
// one: of several requests that are refused at a time, one begins the pause.
func (r *revocation) record() (pause time.Duration, again bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if left := time.Until(r.until); left > 0 {
		return left, false
	}
	pause = revokedPause*9/10 + rand.N(revokedPause/5)
	r.until = time.Now().Add(pause)
	return pause, true
}

// onRefusal is called with each refusal that ends a round of [Device.Run]. Where the server
// says that the device is revoked, it tells the application and returns the refusal with
// the time of the pause; any other error as it is.
func (d *Device) onRefusal(err error) error {
	if watchword.CodeOf(err) != watchword.SubjectRevoked {
		return err
	}
	pause, again := d.revoked.record()
	if again {
		d.opts.Log.Error("the server says that this device is revoked; it asks again a day later, and obeys nothing until then", slog.Duration("again_in", pause.Round(time.Second)))
		if d.opts.Revoked != nil {
			d.opts.Revoked(pause)
		}
	}
	e, ok := errors.AsType[*watchword.Error](err)
	if !ok {
		return err
	}
	paused := *e
	paused.RetryAfter = pause
	return &paused
}
