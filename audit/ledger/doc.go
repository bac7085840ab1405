// Package ledger implements the structures of the transparency log: leaves, the Merkle tree over them (RFC 6962 §2), and tiles,
// checkpoints and proofs as C2SP specifies them (tlog-tiles, tlog-checkpoint, tlog-proof, tlog-cosignature). It works on bytes,
// has no store and does not read the content of entries. It refuses proofs, tiles and signatures that do not verify.
package ledger
