package keyring

import (
	"crypto"
	"io"
)

// Clock says whether the clock of the server's machine is trusted.
type Clock interface {
	// Check returns nil, or why the clock is not trusted. It is called in each act of a role of [StatesTime]. Code: clock_untrusted.
	Check() error
}

// StatesTime says of each role whether its signatures state the time to readers who may have no better clock, so that it signs
// nothing while the server's clock is not trusted: trust bundles, certificates and signed time. The other roles go on: their
// readers compare the time with a clock of their own (access tokens, commands), or no time is signed (checkpoints).
var StatesTime = map[Role]bool{Root: true, CA: true, Time: true, Issuer: false, Command: false, Log: false}

// check returns what signers of a role ask before each signature.
func check(role Role, c Clock) func() error {
	if c == nil || !StatesTime[role] {
		return func() error { return nil }
	}
	return c.Check
}

// checkedKey is a private key that asks before each signature: for certificates, which crypto/x509 signs.
type checkedKey struct {
	crypto.Signer
	check func() error
}

// Sign implements [crypto.Signer].
func (k checkedKey) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := k.check(); err != nil {
		return nil, err
	}
	return k.Signer.Sign(rand, digest, opts)
}
