package api

import "time"

// Address is the answer of GET /v1/address and of POST /v1/address/move: where the server's clients find it.
type Address struct {
	URL    string          `json:"url" doc:"the public URL, under which links point"`
	Issuer string          `json:"issuer" doc:"iss of new tokens; differs from url only on a server whose configuration changed it without a move"`
	MQTTS  string          `json:"mqtts,omitempty" doc:"HOST:PORT of MQTT over TLS"`
	Former []FormerAddress `json:"former,omitempty" doc:"addresses of before, in the order of their first use; at most 15"`
	// Devices counts the active devices by the issuer of their last token request since the first move.
	Devices *AddressDevices `json:"devices,omitempty" doc:"absent before the first move"`
}

// FormerAddress is an issuer that the server had.
type FormerAddress struct {
	Issuer        string    `json:"issuer"`
	AcceptedUntil time.Time `json:"accepted_until"`
	Devices       int       `json:"devices" doc:"active devices whose last token request named it"`
}

// AddressDevices counts active devices.
type AddressDevices struct {
	Moved  int `json:"moved" doc:"whose last token request named the current issuer"`
	Unseen int `json:"unseen" doc:"that have requested no token since the first move"`
}

// MoveAddressRequest is the body of POST /v1/address/move. Overlap is a duration of package time; empty means 720h.
type MoveAddressRequest struct {
	URL     string `json:"url" maxLength:"512" doc:"https://HOST[:PORT]"`
	Overlap string `json:"overlap,omitempty" doc:"how long the former issuer is accepted: from 1h to 17520h; 720h if absent"`
}
