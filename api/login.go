package api

import (
	"encoding/json"
	"time"

	"github.com/watchword-iot/watchword"
)

// RequestLoginRequest is the body of POST /v1/logins, of at most 16 KiB. It proposes neither an operator nor a role. Proof is a
// login proof by the key (package token).
type RequestLoginRequest struct {
	Key   json.RawMessage `json:"key"` // the public signing key, a JWK
	Proof string          `json:"proof"`
}

// RequestLoginResponse is the answer of POST /v1/logins.
type RequestLoginResponse struct {
	LoginCode string `json:"login_code"` // 22 characters: the client's secret, with which it polls
	UserCode  string `json:"user_code"`  // XXXX-XXXX, which the person shows
	ExpiresIn int64  `json:"expires_in"` // seconds
	Interval  int64  `json:"interval"`   // seconds between two polls
}

// PollLoginRequest is the body of POST /v1/logins/poll, whose answer is an [EnrollResponse] once the login is approved.
type PollLoginRequest struct {
	LoginCode string `json:"login_code"`
	Proof     string `json:"proof"`
}

// Login is a key that waits to become an operator's, and the decision on it: an item of GET /v1/logins, and the answer of
// GET /v1/logins/{user_code} and POST /v1/logins/{user_code}/reject.
type Login struct {
	UserCode  string              `json:"user_code"` // XXXX-XXXX
	State     string              `json:"state" enum:"pending,approved,rejected"`
	Sign      watchword.KeyID     `json:"sign" doc:"thumbprint of the key; compare it with the one on the person's screen"`
	Remote    string              `json:"remote" doc:"the address of the client"`
	CreatedAt time.Time           `json:"created_at"`
	ExpiresAt time.Time           `json:"expires_at"`
	Operator  watchword.SubjectID `json:"operator,omitempty" doc:"the operator whose key it became"`
	By        watchword.SubjectID `json:"by,omitempty" doc:"the operator who decided"`
	DecidedAt *time.Time          `json:"decided_at,omitempty"`
}

// LoginList is the answer of GET /v1/logins, newest first.
type LoginList struct {
	Logins        []Login `json:"logins"`
	NextPageToken string  `json:"next_page_token,omitempty"`
}

// ApproveLoginRequest is the body of POST /v1/logins/{user_code}/approve, whose answer is the operator.
type ApproveLoginRequest struct {
	Sign string `json:"sign" minLength:"43" maxLength:"43" doc:"the complete thumbprint of the key, as the person's screen shows it"`
	Pin  string `json:"pin" minLength:"43" maxLength:"43" doc:"the pin of the server's root key, as the person's screen shows it"`
	ID   string `json:"id" minLength:"1" maxLength:"64" doc:"the id of the operator"`
	Role string `json:"role,omitempty" maxLength:"64" doc:"the role of an operator that is added; absent where the operator exists"`
	Name string `json:"key_name,omitempty" maxLength:"64" doc:"what the approver calls the machine that has the key; printable ASCII"`
	// KeyTTL is as in [CreateOperatorRequest].
	KeyTTL string `json:"key_ttl,omitempty" doc:"lifetime of the key from now on, for example 12h; at most 10 years; without it the key has no end"`
}
