package device

import (
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
)

// revokedPause is how long a device sends no request after the server has said that it is revoked; randomized by a tenth,
// so that devices do not send simultaneously.
const revokedPause = 24 * time.Hour

// revocation is the server's statement that this device is revoked, and the time until which it is not asked again. Only an
// authenticated server can make it: from any other the answer is unavailable (see rest.NewUnauthenticated).
type revocation struct {
	mu    sync.Mutex
	until time.Time // by the monotonic clock; zero: not known to be revoked
}

// current returns the current refusal, with its remaining time; nil for none.
func (r *revocation) current() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if left := time.Until(r.until); left > 0 {
		return &watchword.Error{Code: watchword.SubjectRevoked, Detail: "the server refused this device as revoked", RetryAfter: left}
	}
	return nil
}

// record records a refusal and returns its duration. again reports whether it is a new one: of several simultaneous
// refusals, one begins the pause.
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

// onRefusal is called with each error that ends a round of [Device.Run]. If the server says that the device is revoked, it
// notifies the application and returns the refusal with the duration of the pause; any other error is returned unchanged.
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
