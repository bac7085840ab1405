-- +goose Up
-- One notice for each kind and object, so that a second recovery does not replace the notice of the first.
CREATE TABLE notices_by_object (
  tenant  TEXT    NOT NULL,
  kind    TEXT    NOT NULL,
  object  TEXT    NOT NULL,
  at      INTEGER NOT NULL,
  expires INTEGER NOT NULL,
  PRIMARY KEY (tenant, kind, object)
) STRICT, WITHOUT ROWID;
INSERT INTO notices_by_object SELECT tenant, kind, object, at, expires FROM notices;
DROP TABLE notices;
ALTER TABLE notices_by_object RENAME TO notices;

-- +goose Down
CREATE TABLE notices_of_kind (
  tenant  TEXT    NOT NULL,
  kind    TEXT    NOT NULL,
  object  TEXT    NOT NULL,
  at      INTEGER NOT NULL,
  expires INTEGER NOT NULL,
  PRIMARY KEY (tenant, kind)
) STRICT, WITHOUT ROWID;
INSERT OR REPLACE INTO notices_of_kind SELECT tenant, kind, object, at, expires FROM notices ORDER BY at;
DROP TABLE notices;
ALTER TABLE notices_of_kind RENAME TO notices;
