package token

import (
	"encoding/json"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// Order is the claims of an order: the orderer's signed statement of a command. It is contained in the command, and a
// device that pinned the orderer's key verifies it.
type Order struct {
	By       watchword.SubjectID // iss
	Server   string              // the issuer identifier of the server, or of the tenant, that the order is given to
	Device   watchword.SubjectID // aud
	Function string
	ArgsHash string // base64url SHA-256 of the arguments' bytes
	ID       string // jti
	Issued   time.Time
	Expires  time.Time // the command's exp
}

type orderClaims struct {
	Order
	aud audience
	validity
}

func (c *orderClaims) member(name string, v jsontext.Value) error {
	switch name {
	case "iss":
		return readString(&c.By, v)
	case "aud":
		return c.aud.UnmarshalJSON(v)
	case "server":
		return readString(&c.Server, v)
	case "cmd":
		return readString(&c.Function, v)
	case "args_hash":
		return readString(&c.ArgsHash, v)
	case "jti":
		return readString(&c.ID, v)
	}
	return c.validity.member(name, v)
}

// SignOrder signs o with the orderer's signing key, with a new jti. Codes: bad_request if devices would refuse it;
// unavailable.
func SignOrder(s *jose.Signer, o Order) (string, error) {
	b, err := json.Marshal(map[string]any{
		"iss": o.By, "aud": o.Device, "server": o.Server, "cmd": o.Function, "args_hash": o.ArgsHash,
		"jti": watchword.NewNonce(), "iat": o.Issued.Unix(), "exp": o.Expires.Unix(),
	})
	if err != nil {
		return "", err
	}
	return signTyped(s, TypOrder, watchword.MaxToken, b, func(payload []byte) error {
		got, err := readOrder(payload, func(server string) bool { return server != "" && server == o.Server }, o.Device, o.Issued)
		if err == nil && (got.By != o.By || got.Function != o.Function || got.ArgsHash != o.ArgsHash) {
			err = invalidUTF8Claim()
		}
		return err
	})
}

// VerifyOrder verifies an order with the allowed keys: the orderer's own at the server, the pinned ones at the device. server
// reports whether an issuer identifier is one that the order may name: a key may be known to several servers or tenants, and an
// order that was given to one of them is not valid at another one. now is zero for a device without a clock. [Order.Covers] checks
// that it matches its command. Codes: as [VerifyReceipt], order_invalid, token_expired, token_early, token_lifetime.
func VerifyOrder(raw string, keys KeySet, server func(issuer string) bool, dev watchword.SubjectID, now time.Time) (Order, error) {
	payload, _, err := verifyTyped(raw, watchword.MaxToken, TypOrder, keys)
	if err != nil {
		return Order{}, err
	}
	return readOrder(payload, server, dev, now)
}

func readOrder(payload []byte, server func(string) bool, dev watchword.SubjectID, now time.Time) (Order, error) {
	var c orderClaims
	if err := jose.Walk(payload, c.member); err != nil {
		return Order{}, err
	}
	if err := checkAudience(c.aud, string(dev)); err != nil {
		return Order{}, err
	}
	if !server(c.Server) {
		return Order{}, refuse(watchword.OrderInvalid, "server of the order must be the issuer of the server that it is given to")
	}
	if err := checkJTI(c.ID); err != nil {
		return Order{}, err
	}
	if now.IsZero() {
		now = c.iat.time()
	}
	if err := c.check(now, CommandLifetime, Skew, Skew); err != nil {
		return Order{}, err
	}
	o := c.Order
	o.Device, o.Issued, o.Expires = dev, c.iat.time(), c.exp.time()
	return o, nil
}

// Covers returns an error if a command is not the one that was ordered: function, arguments byte for byte, orderer and
// expiry. Code: order_invalid.
func (o Order) Covers(function string, args []byte, by watchword.SubjectID, expires time.Time) error {
	switch {
	case o.Function != function:
		return refuse(watchword.OrderInvalid, "cmd of the order must be %q", function)
	case o.ArgsHash != jose.Hash(args):
		return refuse(watchword.OrderInvalid, "args_hash of the order must be the base64url SHA-256 of args, byte for byte")
	case o.By != by:
		return refuse(watchword.OrderInvalid, "iss of the order must be %q", by)
	case !o.Expires.Equal(expires.Truncate(time.Second)):
		return refuse(watchword.OrderInvalid, "exp of the order must be the end of the command, %d", expires.Unix())
	}
	return nil
}
