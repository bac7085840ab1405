package api

import (
	"encoding/json"

	"github.com/watchword-iot/watchword"
)

// PublicKeys is a device's two public keys as JWKs (RFC 7517). In [RekeyRequest] a key that stays is nil.
type PublicKeys struct {
	Sign json.RawMessage `json:"sign,omitempty"`
	Seal json.RawMessage `json:"seal,omitempty"`
}

// NamedKeys is the public keys of an enrollment. Name is what the holder calls the machine that keeps them, as its host name: at
// most 64 printable ASCII characters.
type NamedKeys struct {
	PublicKeys
	Name string `json:"name,omitempty"`
}

// EnrollRequest is the body of POST /v1/enroll, of at most 16 KiB. Proof is a JWS by the signing key over the code's hash
// and the sealing key.
type EnrollRequest struct {
	Code  string    `json:"code"`
	Keys  NamedKeys `json:"keys"`
	Proof string    `json:"proof"`
}

// EnrollResponse is the answer of POST /v1/enroll: the device's identity and the server's addresses.
type EnrollResponse struct {
	ID            watchword.SubjectID `json:"id"`
	Kind          watchword.Kind      `json:"kind"`
	Labels        watchword.Labels    `json:"labels,omitempty"`
	Issuer        string              `json:"issuer"`
	TokenEndpoint string              `json:"token_endpoint"`
	HTTPS         string              `json:"https"`           // URL without a slash at its end
	MQTTS         string              `json:"mqtts,omitempty"` // URL; empty where the server has no MQTT listener
	CA            string              `json:"ca,omitempty"`    // PEM; empty where a public authority vouches for the server
}

// RekeyRequest is the body of POST /v1/self/keys, of at most 16 KiB. Rekey is a JWS in JSON (RFC 7515 §7.2) by the old signing key and the new one.
type RekeyRequest struct {
	Keys  PublicKeys      `json:"keys"`
	Rekey json.RawMessage `json:"rekey"`
}

// RekeyResponse is the answer of POST /v1/self/keys: the keys that are active now.
type RekeyResponse struct {
	ID   watchword.SubjectID `json:"id"`
	Keys KeyIDs              `json:"keys"`
}

// KeyIDs is the thumbprints (RFC 7638) of a device's two keys.
type KeyIDs struct {
	Sign watchword.KeyID `json:"sign"`
	Seal watchword.KeyID `json:"seal"`
}

// TimeRequest is the body of POST /v1/time, whose answer is a JWS (package token). Nonce has 22 to 64 characters.
type TimeRequest struct {
	Nonce string `json:"nonce"`
}
