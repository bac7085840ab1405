package api

import "github.com/watchword-iot/watchword"

// TokenResponse is the answer of POST /oauth/token (RFC 6749 §5.1).
type TokenResponse struct {
	AccessToken string `json:"access_token"`
	ExpiresIn   int64  `json:"expires_in"`      // seconds
	Scope       string `json:"scope,omitempty"` // the requested scope; empty if none was requested
	TokenType   string `json:"token_type"`      // Bearer, or DPoP for a bound token (RFC 9449 §5)
}

// DeviceAuthorization is the answer of POST /oauth/device_authorization (RFC 8628 §3.2).
type DeviceAuthorization struct {
	DeviceCode              string `json:"device_code"`
	ExpiresIn               int64  `json:"expires_in"`         // seconds
	Interval                *int64 `json:"interval,omitempty"` // seconds between two polls; nil means 5 (§3.2)
	UserCode                string `json:"user_code"`          // XXXX-XXXX
	VerificationURI         string `json:"verification_uri"`
	VerificationURIComplete string `json:"verification_uri_complete,omitempty"`
}

// PairingResponse is the answer of POST /oauth/token to a poll that finds its pairing approved: what enrollment answers,
// and a token.
type PairingResponse struct {
	EnrollResponse
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	ExpiresIn   int64  `json:"expires_in"` // seconds
}

// Introspection is the answer of POST /oauth/introspect (RFC 7662 §2.2). Where Active is false all other members are absent.
type Introspection struct {
	Active    bool                   `json:"active"`
	Audience  string                 `json:"aud,omitempty"`
	ClientID  watchword.SubjectID    `json:"client_id,omitempty"`
	Confirm   *Confirmation          `json:"cnf,omitempty"`
	Deny      []watchword.Permission `json:"deny,omitempty"` // what either denies
	Device    *IntrospectedDevice    `json:"dev,omitempty"`
	ExpiresAt int64                  `json:"exp,omitempty"` // seconds since 1970
	IssuedAt  int64                  `json:"iat,omitempty"` // seconds since 1970
	Issuer    string                 `json:"iss,omitempty"`
	JTI       string                 `json:"jti,omitempty"`
	Key       watchword.KeyID        `json:"key,omitempty"`
	Perm      []watchword.Permission `json:"perm,omitzero"` // what the token and policy both give; empty where they give nothing
	Subject   watchword.SubjectID    `json:"sub,omitempty"`
	TokenType string                 `json:"token_type,omitempty"`
}

// IntrospectedDevice is the subject of a token as it is now.
type IntrospectedDevice struct {
	ID     watchword.SubjectID `json:"id"`
	Labels watchword.Labels    `json:"labels"`
}

// Confirmation is the key that a token is bound to (RFC 9449 §6).
type Confirmation struct {
	Thumbprint watchword.KeyID `json:"jkt"`
}
