// Peers lets the product's tests use libraries that others wrote for the same standards, without a place in the
// product's go.mod: jwx, go-jose and golang-jwt (JOSE), torchwood (C2SP), and Paho's client for MQTT 3.1.1. The module
// knows nothing of the product. A test starts the program through internal/peers.
//
// It reads requests from standard input, one JSON object a line, and answers on standard output in the same form, in any order; the
// end of its input ends it. A request has an id, which its answer repeats, an op (see ops), and the members that op reads. An answer has what
// op returns, or error. Lines without an id are events of an MQTT client.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sync"
)

// request has the members of all ops.
type request struct {
	ID      int64             `json:"id"`
	Op      string            `json:"op"`
	Lib     string            `json:"lib"`    // jwx, go-jose or golang-jwt
	Alg     string            `json:"alg"`    // as in a header (RFC 7518, RFC 8037, RFC 9864)
	Key     []byte            `json:"key"`    // PKIX or PKCS #8, DER
	JWK     json.RawMessage   `json:"jwk"`    // instead of Key
	Raw     string            `json:"raw"`    // what is read
	Data    []byte            `json:"data"`   // what is signed, encrypted or published
	Header  map[string]string `json:"header"` // members of the protected header
	Claims  map[string]any    `json:"claims"`
	Issuer  string            `json:"iss"`
	Aud     string            `json:"aud"`
	Now     int64             `json:"now"` // seconds
	Name    string            `json:"name"`
	Seed    []byte            `json:"seed"` // of an Ed25519 key
	Level   int               `json:"level"`
	N       int64             `json:"n"`
	Width   int               `json:"width"`
	Client  string            `json:"client"` // MQTT client identifier
	Connect *connectOptions   `json:"connect"`
	Topic   string            `json:"topic"`
	QoS     byte              `json:"qos"`
}

// answer has the members of all answers and events.
type answer struct {
	ID       int64  `json:"id,omitempty"`
	Error    string `json:"error,omitempty"`
	Data     []byte `json:"data,omitempty"`
	Text     string `json:"text,omitempty"`
	N        int64  `json:"n,omitempty"`
	Hash     uint32 `json:"hash,omitempty"`
	Event    string `json:"event,omitempty"` // message or lost
	Client   string `json:"client,omitempty"`
	Topic    string `json:"topic,omitempty"`
	QoS      byte   `json:"qos,omitempty"`
	Retained bool   `json:"retained,omitempty"`
}

var ops = map[string]func(request) (answer, error){
	"jws.verify":      verifyJWS,
	"jws.sign":        signJWS,
	"jwe.encrypt":     encrypt,
	"jwe.decrypt":     decrypt,
	"jwk.thumbprint":  thumbprint,
	"jwt.verify":      verifyJWT,
	"jwt.sign":        signJWT,
	"checkpoint":      checkpoint,
	"cosigner":        cosigner,
	"cosign":          cosign,
	"tile":            tilePath,
	"ssh-agent":       serveAgent,
	"mqtt.connect":    connect,
	"mqtt.subscribe":  subscribe,
	"mqtt.publish":    publish,
	"mqtt.disconnect": disconnect,
}

var out = struct {
	sync.Mutex
	*json.Encoder
}{Encoder: json.NewEncoder(os.Stdout)}

// send writes one line. Where the reader has gone, the end of the input follows.
func send(a answer) {
	out.Lock()
	defer out.Unlock()
	_ = out.Encode(a)
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 4<<20)
	for in.Scan() {
		var r request
		if err := json.Unmarshal(in.Bytes(), &r); err != nil {
			fmt.Fprintln(os.Stderr, "peers:", err)
			os.Exit(1)
		}
		go func() {
			do, ok := ops[r.Op]
			if !ok {
				send(answer{ID: r.ID, Error: "there is no op " + r.Op})
				return
			}
			a, err := do(r)
			if a.ID = r.ID; err != nil {
				a.Error = err.Error()
			}
			send(a)
		}()
	}
}
