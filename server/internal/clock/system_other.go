//go:build !linux

package clock

import "time"

// bootTime returns the time since the start of the process: other systems have no common clock that counts suspended time.
func bootTime() time.Duration { return monotonic() }

// synchronized is not known on other systems.
func synchronized() bool { return false }
