package main

import (
	"crypto/ed25519"
	"net"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// serveAgent serves an SSH agent with the key of a seed on the Unix socket of a name, until the program ends. It answers with
// the key's fingerprint.
func serveAgent(r request) (answer, error) {
	key := ed25519.NewKeyFromSeed(r.Seed)
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: &key}); err != nil {
		return answer{}, err
	}
	id, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		return answer{}, err
	}
	l, err := net.Listen("unix", r.Name)
	if err != nil {
		return answer{}, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _ = agent.ServeAgent(ring, c) }() // until its client disconnects
		}
	}()
	return answer{Text: ssh.FingerprintSHA256(id)}, nil
}
