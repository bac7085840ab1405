-- +goose Up
-- A key may have an end, in milliseconds and whole seconds; 0 is no end. Its name is what the one who enrolled it calls the machine.
ALTER TABLE subject_keys ADD COLUMN ends INTEGER NOT NULL DEFAULT 0;
ALTER TABLE subject_keys ADD COLUMN name TEXT NOT NULL DEFAULT '';
CREATE INDEX keys_ending ON subject_keys (ends) WHERE state = 'active' AND ends > 0;

-- The end of the key that is enrolled with a code; 0 is no end.
ALTER TABLE codes ADD COLUMN key_ends INTEGER NOT NULL DEFAULT 0;

-- What every operator of a tenant is told with the next command: the newest of each kind.
CREATE TABLE notices (
  tenant  TEXT    NOT NULL,
  kind    TEXT    NOT NULL,
  object  TEXT    NOT NULL,
  at      INTEGER NOT NULL,
  expires INTEGER NOT NULL,
  PRIMARY KEY (tenant, kind)
) STRICT, WITHOUT ROWID;

-- +goose Down
DROP TABLE notices;
ALTER TABLE codes DROP COLUMN key_ends;
DROP INDEX keys_ending;
ALTER TABLE subject_keys DROP COLUMN name;
ALTER TABLE subject_keys DROP COLUMN ends;
