package clock

import "time"

var processStart = time.Now()

// monotonic returns the time since the start of the process by Go's monotonic clock.
func monotonic() time.Duration { return time.Since(processStart) }
