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

// PolicyDiff is the answer of POST /v1/policies/diff: what an edit of a policy would change if it were applied. Nothing is changed.
type PolicyDiff struct {
	Name    string `json:"name"`
	Version int64  `json:"version"` // the policy's version that the edit was compared with, which If-Match takes; 0: there is no such policy
	Delete  bool   `json:"delete,omitempty"`
	// Refused says why the caller would be refused; null if the edit would be applied.
	Refused *PolicyRefusal `json:"refused"`
	// Subjects and Sessions count all subjects, and all live sessions on this node, that gain or lose something.
	Subjects int `json:"subjects"`
	Sessions int `json:"sessions"`
	// Groups holds the subjects that gain and lose the same, up to 200 groups and 384 KiB; MoreSubjects counts those of other
	// groups.
	Groups       []PolicyDiffGroup   `json:"groups"`
	MoreSubjects int                 `json:"more_subjects,omitempty"`
	LiveSessions []PolicyDiffSession `json:"live_sessions"` // up to 200 of Sessions
}

// PolicyRefusal is a code of docs/errors.md, and the detail that the refusal would have.
type PolicyRefusal struct {
	Code   watchword.Code `json:"code"`
	Detail string         `json:"detail"`
}

// PolicyDiffGroup is subjects of one kind and role that gain and lose the same.
type PolicyDiffGroup struct {
	Kind     watchword.Kind        `json:"kind"`
	Role     string                `json:"role,omitempty"`
	Labels   watchword.Labels      `json:"labels,omitempty"` // that all of them have
	Subjects int                   `json:"subjects"`
	Sessions int                   `json:"sessions"`
	Examples []watchword.SubjectID `json:"examples"` // up to five, the first by id
	// Gained and Lost say what these subjects may do after the edit and not before, and the other way round; MayGiveGained and
	// MayGiveLost what they may give to others, where that is not the same. Each list has up to 200 items and 32 KiB; Cut says that
	// there are more.
	Gained        []PolicyDiffItem `json:"gained,omitempty"`
	Lost          []PolicyDiffItem `json:"lost,omitempty"`
	MayGiveGained []PolicyDiffItem `json:"may_give_gained,omitempty"`
	MayGiveLost   []PolicyDiffItem `json:"may_give_lost,omitempty"`
	Cut           bool             `json:"cut,omitempty"`
	// Proof is "required" where a proof of the key is required after the edit and not before, "not_required" the other way round.
	Proof string `json:"proof,omitempty"`
}

// PolicyDiffItem is a permission with the variables of its rule: ${id} and ${label} stand for the subject's own.
type PolicyDiffItem struct {
	Permission watchword.Permission       `json:"permission"`
	Args       map[string]json.RawMessage `json:"args,omitempty"` // bounds on the arguments of a call
	Rule       string                     `json:"rule"`           // the allow rule that has it: POLICY:LINE, self or a role
	Deny       string                     `json:"deny,omitempty"` // the deny rule that denies it on the other side, if one does
}

// PolicyDiffSession is a live session that the edit changes. Gains and Loses are about the part that its token has: a permission
// that is gained is in new tokens only.
type PolicyDiffSession struct {
	ID        watchword.SessionID `json:"id"`
	Subject   watchword.SubjectID `json:"subject"`
	Transport string              `json:"transport"`
	Gains     bool                `json:"gains,omitempty"`
	Loses     bool                `json:"loses,omitempty"`
	Ends      bool                `json:"ends,omitempty"` // it did not prove its key, and a proof is required after the edit
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
