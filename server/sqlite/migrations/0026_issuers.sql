-- +goose Up
-- Every issuer that the server has had, in the order of their first use; no row before its address first moved. until is in
-- milliseconds since 1970, 0: the current one.
CREATE TABLE issuers (
  n      INTEGER PRIMARY KEY,
  issuer TEXT NOT NULL UNIQUE,
  until  INTEGER NOT NULL
) STRICT;
-- The issuer that a subject's last assertion named, from the first move on, and when that was, to the hour.
CREATE TABLE issuer_use (
  tenant  TEXT NOT NULL,
  subject TEXT NOT NULL,
  issuer  TEXT NOT NULL,
  at      INTEGER NOT NULL,
  PRIMARY KEY (tenant, subject)
) STRICT, WITHOUT ROWID;

-- +goose Down
DROP TABLE issuer_use;
DROP TABLE issuers;
