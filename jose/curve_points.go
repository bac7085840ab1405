package jose

import (
	"crypto/ed25519"
	"slices"
)

// Requirements for a point of Curve25519 to be a public key: it has the only valid encoding (RFC 8032 §5.1.3; a second
// encoding would be a second thumbprint for the same key), is on the curve, and has large order. Under a key of small order
// one signature is valid for many messages, and a key exchange gives a secret that is public.

// checkEdwards checks 32 bytes as an Ed25519 key. Code: bad_request.
func checkEdwards(p []byte) error {
	y := [32]byte(p)
	y[31] &= 0x7f // the sign of x
	switch {
	case !isReduced(&y):
		return keyInvalid("x must be the reduced encoding of a point (RFC 8032 §5.1.3)")
	case slices.Contains(smallOrders, y):
		return keyInvalid("x must not be a point of small order")
	case verifyError(p) != verifyErrorOfPoint:
		return keyInvalid("x must be a point of the curve")
	}
	return nil
}

// checkMontgomery checks 32 bytes as an X25519 key. Every such number is a point
// of the curve or of its twist, and either may be used (RFC 7748 §5). Code: bad_request.
func checkMontgomery(p []byte) error {
	u := [32]byte(p)
	switch {
	case !isReduced(&u):
		return keyInvalid("x must be the reduced encoding of a point (RFC 8032 §5.1.3)")
	case slices.Contains(lowOrders, u):
		return keyInvalid("x must not be a point of small order")
	}
	return nil
}

// isReduced reports whether n, little-endian, is below 2^255-19.
func isReduced(n *[32]byte) bool {
	if n[31] != 0x7f {
		return n[31] < 0x7f
	}
	for _, b := range n[1:31] {
		if b != 0xff {
			return true
		}
	}
	return n[0] < 0xed
}

// smallOrders is the y coordinates, without the sign of x, of the points of
// edwards25519 whose order divides 8. lowOrders is the same for the u coordinate
// of curve25519 and its twist.
var (
	smallOrders = [][32]byte{{0}, {1}, minusOne, order8, order8Too}
	lowOrders   = [][32]byte{{0}, {1}, minusOne, low8, low8Too}

	minusOne  = [32]byte([]byte("\xec\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"))
	order8    = [32]byte([]byte("\x26\xe8\x95\x8f\xc2\xb2\x27\xb0\x45\xc3\xf4\x89\xf2\xef\x98\xf0\xd5\xdf\xac\x05\xd3\xc6\x33\x39\xb1\x38\x02\x88\x6d\x53\xfc\x05"))
	order8Too = [32]byte([]byte("\xc7\x17\x6a\x70\x3d\x4d\xd8\x4f\xba\x3c\x0b\x76\x0d\x10\x67\x0f\x2a\x20\x53\xfa\x2c\x39\xcc\xc6\x4e\xc7\xfd\x77\x92\xac\x03\x7a"))
	low8      = [32]byte([]byte("\xe0\xeb\x7a\x7c\x3b\x41\xb8\xae\x16\x56\xe3\xfa\xf1\x9f\xc4\x6a\xda\x09\x8d\xeb\x9c\x32\xb1\xfd\x86\x62\x05\x16\x5f\x49\xb8\x00"))
	low8Too   = [32]byte([]byte("\x5f\x9c\x95\xbc\xa3\x50\x8c\x24\xb1\xd0\xb1\x55\x9c\x83\xef\x5b\x04\x44\x5c\xc4\x58\x1c\x8e\x86\xd8\x22\x4e\xdd\xd0\x9f\x11\x57"))
)

// verifyError returns the standard library's error for an empty signature under p. The library decodes the key first, and
// has another error if it is not a point: there is no other way to check this. A test checks the difference.
func verifyError(p []byte) string {
	return ed25519.VerifyWithOptions(p, nil, nil, &ed25519.Options{}).Error()
}

// verifyErrorOfPoint is its answer for a key that is one: the base point.
var verifyErrorOfPoint = verifyError(append([]byte{0x58}, slices.Repeat([]byte{0x66}, 31)...))
