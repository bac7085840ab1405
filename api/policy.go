package api

import (
	"encoding/json"
	"time"

	"github.com/watchword-iot/watchword"
)

// Policy is a policy without its text: an item of GET /v1/policies, and the answer of PUT /v1/policies/{name}.
type Policy struct {
	Name      string    `json:"name"`
	Version   int64     `json:"version"` // from 1; the ETag, which If-Match takes
	ChangedAt time.Time `json:"changed_at"`
}

// PolicyList is the answer of GET /v1/policies, in order of Name.
type PolicyList struct {
	Policies      []Policy `json:"policies"`
	NextPageToken string   `json:"next_page_token,omitempty"`
}

// PolicyCheck is the answer of POST /v1/policies/check where the policy has no mistakes: OK is true.
type PolicyCheck struct {
	OK bool `json:"ok"`
}

// ExplainRequest is the body of POST /v1/explain. Resource is topic:TOPIC, fn:DEVICE/FUNCTION or api:/PATH; Args is the
// JSON object of a call's arguments.
type ExplainRequest struct {
	Subject  watchword.SubjectID `json:"subject" maxLength:"64"`
	Action   string              `json:"action" enum:"pub,sub,call,get,put,post,patch,delete"`
	Resource string              `json:"resource" maxLength:"1024"`
	Args     json.RawMessage     `json:"args,omitempty"`
}

// Explanation is the answer of POST /v1/explain: the rule that decided, or the nearest one that did not fit. Nearest may
// show a value of Args.
type Explanation struct {
	Allowed bool   `json:"allowed"`
	Policy  string `json:"policy,omitempty"`
	Line    int    `json:"line,omitempty"` // of the policy's text, from 1
	Why     string `json:"why"`
	Nearest string `json:"nearest,omitempty"`
	Proof   string `json:"proof,omitempty"` // why nothing is allowed without a proof of the subject's key; empty where it may be
}
