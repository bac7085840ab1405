-- +goose Up
-- A restore from a backup raises the epoch, and starts the numbers of bundles and the name of the log again.
ALTER TABLE instance ADD COLUMN log_origin TEXT NOT NULL DEFAULT '';       -- since the last restore; '': the origin of the first start
ALTER TABLE instance ADD COLUMN restored_at INTEGER NOT NULL DEFAULT 0;    -- ms; 0: never
ALTER TABLE instance ADD COLUMN superseded_by INTEGER NOT NULL DEFAULT 0;  -- epoch of a newer bundle of the own root; 0: none
ALTER TABLE server_keys ADD COLUMN origin TEXT NOT NULL DEFAULT '';        -- of log keys: the log that they sign; '': as in instance
CREATE TABLE bundles_of_epochs (
  epoch   INTEGER NOT NULL,
  version INTEGER NOT NULL,
  jws     BLOB    NOT NULL,
  starts  INTEGER NOT NULL,
  expires INTEGER NOT NULL,
  PRIMARY KEY (epoch, version)
) STRICT, WITHOUT ROWID;
INSERT INTO bundles_of_epochs SELECT coalesce((SELECT epoch FROM instance), 1), version, jws, starts, expires FROM bundles;
DROP TABLE bundles;
ALTER TABLE bundles_of_epochs RENAME TO bundles;

-- +goose Down
CREATE TABLE bundles_of_one_epoch (
  version INTEGER PRIMARY KEY,
  jws     BLOB    NOT NULL,
  expires INTEGER NOT NULL,
  starts  INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT OR REPLACE INTO bundles_of_one_epoch SELECT version, jws, expires, starts FROM bundles ORDER BY epoch;
DROP TABLE bundles;
ALTER TABLE bundles_of_one_epoch RENAME TO bundles;
ALTER TABLE server_keys DROP COLUMN origin;
ALTER TABLE instance DROP COLUMN superseded_by;
ALTER TABLE instance DROP COLUMN restored_at;
ALTER TABLE instance DROP COLUMN log_origin;
