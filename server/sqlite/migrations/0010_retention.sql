-- +goose Up
-- How far the log is pruned. The log itself says so too: entries log.prune.
CREATE TABLE audit_pruned (
  one     INTEGER PRIMARY KEY CHECK (one = 1),
  through INTEGER NOT NULL,
  kept    INTEGER NOT NULL,
  chain   BLOB    NOT NULL
) STRICT;
INSERT INTO audit_pruned VALUES (1, 0, 0, zeroblob(32));

-- +goose Down
DROP TABLE audit_pruned;
