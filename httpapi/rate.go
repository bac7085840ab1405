package httpapi

import (
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/rates"
)

// Every request with a token is counted against its subject before anything is read, decided, signed, written or
// logged for it. Each operation belongs to one class, and a subject has one account for each class. The class follows
// from the pattern of the route, so that a new route has one.

// rateClass is what a group of operations may cost one subject.
type rateClass struct {
	name      string
	perSecond float64 // at most; 0: limits.request_rate alone
	burst     int     // 0: two seconds' worth
}

// The classes. Those of /v1/self are for devices: what a device writes of itself has a narrow bound, since every device
// may call these operations.
var (
	rateRead       = &rateClass{name: "read"}
	rateChange     = &rateClass{name: "change"}
	rateSelf       = &rateClass{name: "self", perSecond: 50, burst: 200}
	rateEvents     = &rateClass{name: "events"} // and limits.publish_rate: see [API.publishEvent]
	rateReceipts   = &rateClass{name: "receipts", perSecond: 200, burst: 400}
	rateState      = &rateClass{name: "state", perSecond: 20, burst: 100}
	rateRare       = &rateClass{name: "rare", perSecond: 1, burst: 20}
	rateClasses    = []*rateClass{rateRead, rateChange, rateSelf, rateEvents, rateReceipts, rateState, rateRare}
	rateExceptions = map[string]*rateClass{
		"POST /v1/self/events/{stream...}": rateEvents,
		"POST /v1/self/receipts":           rateReceipts,
		"PUT /v1/self/state":               rateState,
		"PUT /v1/self/functions":           rateRare, // up to 256 schemas are compiled
		"POST /v1/self/keys":               rateRare,
		"POST /oauth/introspect":           rateRead, // it changes nothing
	}
)

// rateClassOf is the class of the route with that pattern ("METHOD /path").
func rateClassOf(pattern string) *rateClass {
	if c, ok := rateExceptions[pattern]; ok {
		return c
	}
	method, path, _ := strings.Cut(pattern, " ")
	switch {
	case path == "/v1/self" || strings.HasPrefix(path, "/v1/self/"):
		return rateSelf
	case method == http.MethodGet || pattern == "": // no route: only the refusal is logged
		return rateRead
	}
	return rateChange
}

// subjectRates counts requests by class and subject. It is safe for concurrent use.
type subjectRates map[*rateClass]*rates.Map[watchword.SubjectID]

// newSubjectRates allows at most perSecond to each subject in each class; 0 is no bound in the classes without one of their own.
func newSubjectRates(perSecond float64) subjectRates {
	out := subjectRates{}
	for _, c := range rateClasses {
		limit, burst := perSecond, int(math.Ceil(max(10, 2*perSecond)))
		if c.perSecond > 0 {
			if limit == 0 {
				limit, burst = c.perSecond, c.burst
			}
			burst = min(burst, c.burst)
			limit = min(limit, c.perSecond)
		}
		out[c] = rates.NewBurst[watchword.SubjectID](limit, burst, "too many requests of this subject ("+c.name+")")
	}
	return out
}

// take counts a request to the route with that pattern. Code: rate_limited, with RetryAfter.
func (s subjectRates) take(pattern string, id watchword.SubjectID, now time.Time) error {
	return s[rateClassOf(pattern)].Take(id, now)
}
