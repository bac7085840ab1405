package sim

import (
	"math/bits"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
)

// Report is the result of a run, or of its part so far. Times are in milliseconds.
type Report struct {
	Seconds     float64        `json:"seconds"`
	OK          bool           `json:"ok"` // at the end: every device is connected
	Devices     Devices        `json:"devices"`
	Connections Connections    `json:"lines"`
	Storms      []Storm        `json:"storms"`
	Events      Operations     `json:"events"`
	Commands    Operations     `json:"commands"`
	GaveUp      map[string]int `json:"ended"` // devices that gave up, by code
}

// Devices counts devices by their state.
type Devices struct {
	Planned  int `json:"planned"`
	Begun    int `json:"begun"`
	Enrolled int `json:"enrolled"` // in this run
	MQTT     int `json:"mqtt"`     // with a connection
	HTTPS    int `json:"https"`    // polling for commands
}

// Connections counts the MQTT connections by their fate.
type Connections struct {
	Made      int     `json:"made"`
	Broken    int     `json:"broken"` // by the simulation
	Stalled   int     `json:"silent"` // of the broken ones: stalled first, in both directions
	Slow      int     `json:"slow"`   // of the opened ones: carry a few bytes at a time
	Reconnect Latency `json:"back"`   // from the break until the device is connected again
}

// Storm is one simultaneous break of all connections.
type Storm struct {
	At         float64 `json:"at"`      // seconds from the start
	Devices    int     `json:"devices"` // with a connection
	RecoveryMS float64 `json:"back_ms"` // until the last of them was connected again; 0 while some are not
}

// Operations counts events or commands.
type Operations struct {
	Done    int            `json:"done"` // acknowledged, or answered with a receipt
	Rate    float64        `json:"per_second"`
	Latency Latency        `json:"took"` // from the scheduled time
	Late    int            `json:"late"` // skipped, because earlier ones took too long
	Refused map[string]int `json:"refused"`
}

// Latency is a distribution of durations, with an error of at most 3 %.
type Latency struct {
	Count int     `json:"count"`
	P50   float64 `json:"p50_ms"`
	P99   float64 `json:"p99_ms"`
	Max   float64 `json:"most_ms"`
}

// histogram collects durations. Its size does not depend on their number.
type histogram struct {
	mu     sync.Mutex
	count  int
	max    time.Duration
	counts [64 * stepsPerDoubling]uint32
}

const stepsPerDoubling = 32 // buckets for each power of two

// bucketOf returns the bucket of a duration in microseconds.
func bucketOf(us uint64) int {
	e := max(bits.Len64(us)-6, 0)
	return stepsPerDoubling*e + int(us>>e)
}

// bucketMax returns the longest duration of a bucket, in microseconds.
func bucketMax(n int) uint64 {
	if n < 2*stepsPerDoubling {
		return uint64(n)
	}
	e := n/stepsPerDoubling - 1
	return (uint64(n-stepsPerDoubling*e)+1)<<e - 1
}

func (c *histogram) add(d time.Duration) {
	d = max(d, 0)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count++
	c.max = max(c.max, d)
	c.counts[bucketOf(uint64(d.Microseconds()))]++
}

func (c *histogram) latency() Latency {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := func(share float64) float64 {
		left := share * float64(c.count)
		for n, k := range c.counts {
			if left -= float64(k); k > 0 && left <= 0 {
				return min(float64(bucketMax(n)), float64(c.max.Microseconds())) / 1000
			}
		}
		return 0
	}
	return Latency{c.count, at(0.5), at(0.99), float64(c.max.Microseconds()) / 1000}
}

// codeCounter counts errors by code.
type codeCounter struct {
	mu sync.Mutex
	by map[string]int // there are few codes
}

func (t *codeCounter) add(err error) {
	code := watchword.CodeOf(err)
	if code == "" {
		code = watchword.Unavailable
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.by == nil {
		t.by = map[string]int{}
	}
	t.by[string(code)]++
}

func (t *codeCounter) all() map[string]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[string]int{}
	for k, n := range t.by {
		out[k] = n
	}
	return out
}
