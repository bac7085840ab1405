package jose

// Raw signs without a check of what the key gave.
func (s *Signer) Raw(message []byte) ([]byte, error) { return s.raw(message) }
