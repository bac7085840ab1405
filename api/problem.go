package api

import "github.com/watchword-iot/watchword"

// Problem is a problem document (RFC 9457 §3): the body of every refusal of the addresses under /v1/… and /log/…,
// and the data of the event "end" of a stream.
type Problem struct {
	Type       string         `json:"type" doc:"URL of the page that explains the code"`
	Title      string         `json:"title"`
	Status     int            `json:"status"`
	Code       watchword.Code `json:"code" doc:"stable; docs/errors.md explains each"`
	Detail     string         `json:"detail,omitempty"`
	Field      string         `json:"field,omitempty" doc:"path of the invalid field, never its value"`
	Rule       string         `json:"rule,omitempty" doc:"the policy rule that decided"`
	TraceID    string         `json:"trace_id,omitempty"`
	RetryAfter int            `json:"retry_after,omitempty" doc:"seconds to wait before another request"`
	Mistakes   []Mistake      `json:"mistakes,omitempty" doc:"errors in a policy document"`
}

// Mistake is one error in a policy document; a [Problem] of PUT /v1/policies/{name} and POST /v1/policies/check has at
// most 20. Line and Column count from 1; 0 is unknown.
type Mistake struct {
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Message string `json:"message"`
}

// OAuthError is the body of a refusal of the endpoints /oauth/… (RFC 6749 §5.2).
type OAuthError struct {
	Code        watchword.Code `json:"code"`              // as in [Problem]
	Error       string         `json:"error"`             // the standard's code, as invalid_client
	Description string         `json:"error_description"` // ASCII, without quotation marks and backslashes
	TraceID     string         `json:"trace_id"`
}
