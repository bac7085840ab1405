//go:build !linux

package sdnotify

import "time"

// monotonic reads no clock: systemd runs on Linux alone.
func monotonic() (time.Duration, bool) { return 0, false }
