package backup

import (
	"bytes"
	"io"
	"strings"

	"filippo.io/age"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
)

// maxPassphraseWork bounds the work factor of scrypt that a file may ask for: 2^20 take 1 GiB and some seconds.
const maxPassphraseWork = 20

// MaxRecipients is how many recipients one backup may have.
const MaxRecipients = 20

// ParseRecipients parses public keys of age ("age1…"), one in each text, that can be used together. Code: config_invalid.
func ParseRecipients(texts []string) ([]age.Recipient, error) {
	if len(texts) > MaxRecipients {
		return nil, watchword.Refuse(watchword.ConfigInvalid, "a backup must have at most %d recipients", MaxRecipients)
	}
	var out []age.Recipient
	for _, text := range texts {
		if strings.HasPrefix(strings.ToUpper(text), "AGE-SECRET-KEY-") {
			return nil, watchword.Refuse(watchword.ConfigInvalid, "a recipient is an identity, a private key, which must not be here: give its public key, which age-keygen -y prints")
		}
		rs, err := age.ParseRecipients(strings.NewReader(text))
		if err != nil || len(rs) != 1 {
			return nil, watchword.Refuse(watchword.ConfigInvalid, "the recipient %.80q must be a public key of age, \"age1…\", which age-keygen prints", text)
		}
		out = append(out, rs[0])
	}
	if len(out) > 0 {
		if _, err := age.Encrypt(io.Discard, out...); err != nil {
			return nil, watchword.Wrap(err, watchword.ConfigInvalid, "these recipients cannot be used together: post-quantum ones (age1pq…) only with each other")
		}
	}
	return out, nil
}

// ReadIdentities reads a file of age identities ("AGE-SECRET-KEY-1…", one a line), which only its owner may read. Codes:
// config_invalid, key_exposed, file_untrusted; otherwise the error of the system.
func ReadIdentities(path string) ([]age.Identity, error) {
	b, err := durable.ReadPrivate(path)
	if err != nil {
		return nil, err
	}
	ids, err := age.ParseIdentities(bytes.NewReader(b))
	if err != nil {
		return nil, watchword.Refuse(watchword.ConfigInvalid, "%s must have identities of age, one a line, as age-keygen writes them", path) // without the error, which may quote the file
	}
	return ids, nil
}

// ReadPassphrase reads a passphrase from the first line of a file, which only its owner may read. It has 12 characters at least.
// Codes: config_invalid, key_exposed, file_untrusted; otherwise the error of the system.
func ReadPassphrase(path string) (watchword.Secret, error) {
	b, err := durable.ReadPrivate(path)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	line = strings.TrimSuffix(line, "\r")
	return watchword.Secret(line), checkPassphrase(line)
}

// minPassphrase is the fewest characters of a passphrase, since a holder of the file can try passphrases without a limit.
const minPassphrase = 12

func checkPassphrase(p string) error {
	if len([]rune(p)) < minPassphrase {
		return watchword.Refuse(watchword.ConfigInvalid, "the passphrase must have %d characters at least", minPassphrase)
	}
	return nil
}

// PassphraseRecipient returns the recipient of a passphrase, which must be the only one of a backup. work is the work factor of
// scrypt, as an exponent of 2; 0 means that of age (2^18: 256 MiB of memory, about a second). Code: config_invalid.
func PassphraseRecipient(p watchword.Secret, work int) (age.Recipient, error) {
	if err := checkPassphrase(string(p)); err != nil {
		return nil, err
	}
	r, err := age.NewScryptRecipient(string(p))
	if err == nil && work != 0 {
		r.SetWorkFactor(work)
	}
	return r, err
}

// PassphraseIdentity returns the identity of a passphrase. Code: config_invalid.
func PassphraseIdentity(p watchword.Secret) (age.Identity, error) {
	if err := checkPassphrase(string(p)); err != nil {
		return nil, err
	}
	i, err := age.NewScryptIdentity(string(p))
	if err == nil {
		i.SetMaxWorkFactor(maxPassphraseWork)
	}
	return i, err
}
