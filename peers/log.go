package main

import (
	"crypto/ed25519"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"
)

// checkpoint reads the text of a checkpoint (C2SP tlog-checkpoint), without its signatures.
func checkpoint(r request) (answer, error) {
	c, err := torchwood.ParseCheckpoint(r.Raw)
	if err != nil {
		return answer{}, err
	}
	return answer{Text: c.Origin, N: c.N, Data: c.Hash[:]}, nil
}

func witness(r request) (*torchwood.CosignatureSigner, error) {
	return torchwood.NewCosignatureSigner(r.Name, ed25519.NewKeyFromSeed(r.Seed))
}

// cosigner answers with the verifier key of the witness of a name and seed (C2SP tlog-cosignature), and the hash in it.
func cosigner(r request) (answer, error) {
	w, err := witness(r)
	if err != nil {
		return answer{}, err
	}
	return answer{Text: w.Verifier().String(), Hash: w.KeyHash()}, nil
}

// cosign signs the text of a note as that witness, at the time of now.
func cosign(r request) (answer, error) {
	w, err := witness(r)
	if err != nil {
		return answer{}, err
	}
	sig, err := w.Sign(r.Data)
	return answer{Data: sig}, err
}

// tilePath answers with the path of a tile (C2SP tlog-tiles).
func tilePath(r request) (answer, error) {
	return answer{Text: torchwood.TilePath(tlog.Tile{H: 8, L: r.Level, N: r.N, W: r.Width})}, nil
}
