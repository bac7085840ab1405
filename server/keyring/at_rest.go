package keyring

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"

	"github.com/watchword-iot/watchword"
)

// Encrypted data in the store is: one byte of version, 16 of salt, 12 of nonce, then AES-256-GCM. The key of each message
// is HMAC-SHA-256 of the salt under the long-lived key, so that the number of messages is practically unlimited (random
// 96-bit nonces alone would be safe for about 2^32).
const (
	atRestV1 = 1
	saltSize = 16
)

func sealBytes(key []byte, context string, plaintext []byte) ([]byte, error) {
	out := make([]byte, 1+saltSize+12, 1+saltSize+12+len(plaintext)+16)
	out[0] = atRestV1
	_, _ = rand.Read(out[1:]) // never fails (crypto/rand)
	aead, err := messageKey(key, out[1:1+saltSize])
	if err != nil {
		return nil, err
	}
	return aead.Seal(out, out[1+saltSize:], plaintext, []byte(context)), nil
}

func openBytes(key []byte, context string, sealed []byte) ([]byte, error) {
	if len(sealed) < 1+saltSize+12+16 || sealed[0] != atRestV1 {
		return nil, watchword.Refuse(watchword.KeyDamaged, "sealed bytes are damaged: too short, or of an unknown version")
	}
	aead, err := messageKey(key, sealed[1:1+saltSize])
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, sealed[1+saltSize:1+saltSize+12], sealed[1+saltSize+12:], []byte(context))
	if err != nil {
		return nil, watchword.Wrap(err, watchword.KeyDamaged, "sealed bytes are damaged, or were sealed for something else")
	}
	return plain, nil
}

func messageKey(key, salt []byte) (cipher.AEAD, error) {
	mac := hmac.New(sha256.New, key)
	mac.Write(salt)
	block, err := aes.NewCipher(mac.Sum(nil))
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
