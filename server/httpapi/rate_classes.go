package httpapi

import (
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/server/internal/ratelimit"
)

// Every request with a token is counted against its subject before anything is read, decided,
// signed, written or logged for it. Each operation belongs to one rate class, and a subject has one
// account for each class. The class follows from the route's pattern, so that a new route has one
// too.

// rateClass is a group of operations with one rate limit: a share of limits.request_rate, and a
// burst in seconds of that rate (at least ten requests).
type rateClass struct {
	name  string
	share float64
	burst float64 // seconds
}

// The rate classes. Devices may call everything under /v1/self, so those operations have low
// limits.
var (
	rateRead        = &rateClass{"read", 1, 2}
	rateChange      = &rateClass{"change", 1, 2}
	rateSelfService = &rateClass{"self", 1. / 40, 4}
	rateEvents      = &rateClass{"events", 1, 2} // also limited by limits.publish_rate: see [API.publishEvent]
	rateReceipts    = &rateClass{"receipts", 1. / 10, 2}
	rateState       = &rateClass{"state", 1. / 100, 5}
	rateSelfRare    = &rateClass{"rare", 1. / 10_000, 50}
	rateClasses     = []*rateClass{rateRead, rateChange, rateSelfService, rateEvents, rateReceipts, rateState, rateSelfRare}
	rateExceptions  = map[string]*rateClass{
		"POST /v1/self/events/{stream...}": rateEvents,
		"POST /v1/self/receipts":           rateReceipts,
		"PUT /v1/self/state":               rateState,
		"PUT /v1/self/functions":           rateSelfRare, // compiles up to 256 schemas
		"POST /v1/self/keys":               rateSelfRare,
		"POST /oauth/introspect":           rateRead, // changes nothing
	}
)

// rateClassOf returns the class of the route with that pattern ("METHOD /path").
func rateClassOf(pattern string) *rateClass {
	if c, ok := rateExceptions[pattern]; ok {
		return c
	}
	method, path, _ := strings.Cut(pattern, " ")
	switch {
	case path == "/v1/self" || strings.HasPrefix(path, "/v1/self/"):
		return rateSelfService
	case method == http.MethodGet || pattern == "": // no route matched; only the refusal is logged
		return rateRead
	}
	return rateChange
}

// subjectRates counts requests by class and subject. It is safe for concurrent use.
type subjectRates map[*rateClass]*ratelimit.Map[quota.Key]

// newSubjectRates allows perSecond requests to each subject, or its class's share of that; 0: no
// limit.
func newSubjectRates(perSecond float64) subjectRates {
	out := subjectRates{}
	for _, c := range rateClasses {
		limit := perSecond * c.share
		out[c] = ratelimit.NewBurst[quota.Key](limit, int(max(10, math.Ceil(limit*c.burst))), "too many requests of this subject ("+c.name+")")
	}
	return out
}

// take counts a request to the route with that pattern. Code: rate_limited, with RetryAfter.
func (s subjectRates) take(pattern string, of quota.Key, now time.Time) error {
	return s[rateClassOf(pattern)].Take(of, now)
}
