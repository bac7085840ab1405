package sim

import (
	"math/bits"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
)

// Report is what was seen so far. Times are in milliseconds.
type Report struct {
	Seconds     float64        `json:"seconds"`
	OK          bool           `json:"ok"` // at the end: every device is there
	Devices     Devices        `json:"devices"`
	Connections Connections    `json:"lines"`
	Storms      []Storm        `json:"storms"`
	Events      Operations     `json:"events"`
	Commands    Operations     `json:"commands"`
	GaveUp      map[string]int `json:"ended"` // devices that gave up, by code
}

// Devices is where the devices are.
type Devices struct {
	Planned  int `json:"planned"`
	Begun    int `json:"begun"`
	Enrolled int `json:"enrolled"` // in this run
	MQTT     int `json:"mqtt"`     // that have a connection
	HTTPS    int `json:"https"`    // that ask for commands there
}

// Connections is what became of the connections for MQTT.
type Connections struct {
	Made      int     `json:"made"`
	Broken    int     `json:"broken"` // by the simulation
	Stalled   int     `json:"silent"` // of those: went dead first, both ways
	Slow      int     `json:"slow"`   // of those made: carry a few bytes at a time
	Reconnect Latency `json:"back"`   // from the break until the device is connected again
}

// Storm is one break of all lines at once.
type Storm struct {
	At         float64 `json:"at"`      // seconds from the begin
	Devices    int     `json:"devices"` // that had a line
	RecoveryMS float64 `json:"back_ms"` // until the last of them was back; 0 while some are not
}

// Operations is events or commands.
type Operations struct {
	Done    int            `json:"done"` // acknowledged, or answered with a receipt
	Rate    float64        `json:"per_second"`
	Latency Latency        `json:"took"` // from when it was due
	Late    int            `json:"late"` // left out, since those before took too long
	Refused map[string]int `json:"refused"`
}

// Latency is how long many things took, to within 3 %.
type Latency struct {
	Count int     `json:"count"`
	P50   float64 `json:"p50_ms"`
	P99   float64 `json:"p99_ms"`
	Max   float64 `json:"most_ms"`
}

// histogram collects times. It is of one size however many they are.
type histogram struct {
	mu     sync.Mutex
	count  int
	max    time.Duration
	counts [64 * stepsPerDoubling]uint32
}

const stepsPerDoubling = 32 // steps in each doubling

// bucketOf returns the number of the step that a time in microseconds is in.
func bucketOf(us uint64) int {
	e := max(bits.Len64(us)-6, 0)
	return stepsPerDoubling*e + int(us>>e)
}

// bucketMax is the longest time of a step, in microseconds.
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

// codeCounter counts by code.
type codeCounter struct {
	mu sync.Mutex
	by map[string]int // codes are few
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
