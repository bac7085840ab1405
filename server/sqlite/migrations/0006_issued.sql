-- +goose Up
-- What was issued and the assertion that it was issued for are one row. jti begins
-- with the time, so rows are appended, and pruned from the front. That an assertion
-- counts once is held in memory, which is filled from here at start.
CREATE TABLE issued (
  jti         TEXT    NOT NULL PRIMARY KEY,
  tenant      TEXT    NOT NULL,
  subject     TEXT    NOT NULL,
  spent       TEXT    NOT NULL, -- the assertion's jti
  incarnation INTEGER NOT NULL,
  key         TEXT    NOT NULL,
  says        BLOB    NOT NULL, -- hash over what the token gives, and to whom
  issued      INTEGER NOT NULL,
  expires     INTEGER NOT NULL,
  ends        INTEGER NOT NULL, -- when the assertion is over
  revoked     INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
-- The assertions of these stay in spent. They pass no more: who holds one gets another.
INSERT INTO issued SELECT jti, tenant, subject, 'before/' || jti, incarnation, key, zeroblob(32), issued, expires, issued, revoked FROM tokens;
DROP TABLE tokens;

-- +goose Down
CREATE TABLE tokens (
  tenant      TEXT    NOT NULL,
  jti         TEXT    NOT NULL,
  subject     TEXT    NOT NULL,
  incarnation INTEGER NOT NULL,
  key         TEXT    NOT NULL,
  issued      INTEGER NOT NULL,
  expires     INTEGER NOT NULL,
  revoked     INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (tenant, jti)
) STRICT, WITHOUT ROWID;
CREATE INDEX tokens_of ON tokens (tenant, subject);
CREATE INDEX tokens_end ON tokens (expires);
INSERT OR IGNORE INTO spent SELECT tenant, subject, spent, ends FROM issued;
INSERT INTO tokens SELECT tenant, jti, subject, incarnation, key, issued, expires, revoked FROM issued;
DROP TABLE issued;
