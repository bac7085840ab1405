-- +goose Up
-- The log's leaf commits to hash, which is over salt and body; what is pruned keeps its hash alone.
ALTER TABLE audit_entries RENAME TO audit_entries_before; -- the next step brings them over
CREATE TABLE audit_entries (
  seq  INTEGER PRIMARY KEY,
  hash BLOB NOT NULL,
  salt BLOB,
  body BLOB
) STRICT;

-- Full tiles of the tree over the leaves. root is what the hashes add up to.
CREATE TABLE audit_tiles (
  level  INTEGER NOT NULL,
  n      INTEGER NOT NULL,
  root   BLOB    NOT NULL,
  hashes BLOB    NOT NULL,
  PRIMARY KEY (level, n)
) STRICT;

-- What may stand in the entries of the n-th tile: derived, for searches alone.
CREATE TABLE audit_terms (
  n     INTEGER PRIMARY KEY,
  first INTEGER NOT NULL,
  last  INTEGER NOT NULL,
  bits  BLOB    NOT NULL
) STRICT;

CREATE TABLE audit_checkpoints (
  size INTEGER PRIMARY KEY,
  note BLOB    NOT NULL,
  at   INTEGER NOT NULL
) STRICT;

-- +goose Down
DROP TABLE audit_checkpoints;
DROP TABLE audit_terms;
DROP TABLE audit_tiles;
DROP TABLE audit_entries;
ALTER TABLE audit_entries_before RENAME TO audit_entries;
