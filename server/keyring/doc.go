// Package keyring holds and rotates the server's keys, one set for each role (docs/operations.md, Keys). Private keys are
// encrypted in the store with a data key, which is wrapped by a key-encryption key that is not in the store. The package returns
// signers, public keys, certificates and encrypted bytes. It refuses key files that other users can read, and a key-encryption
// key that is not the one that wrapped the data key.
package keyring
