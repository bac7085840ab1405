// Package keyring is the server's keys: each role its own (DESIGN §7), made
// once, kept sealed in the store under a key-encryption key that is not there,
// and lent out as signers and public halves. In come a store and a
// key-encryption key, out go signers, key sets, certificates and sealed bytes.
// It refuses key files that others can read, and a key-encryption key that is
// not the one that sealed the ring.
package keyring
