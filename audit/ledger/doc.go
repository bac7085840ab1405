// Package ledger is the arithmetic of the log: leaves, the Merkle tree over them
// (RFC 6962 §2), tiles, checkpoints and proofs as C2SP has them. In go bytes, out
// come bytes and verdicts. It refuses what does not fit, and knows neither a store
// nor what an entry says.
package ledger
