-- +goose Up
-- Devices with keys and no code, who wait for an operator's word (RFC 8628). Of
-- the device code there is only the hash.
CREATE TABLE pairings (
  tenant    TEXT    NOT NULL,
  id        TEXT    NOT NULL,
  device    BLOB    NOT NULL, -- SHA-256 of the device code
  user_code TEXT    NOT NULL,
  wish      TEXT    NOT NULL,
  sign      TEXT    NOT NULL,
  sign_jwk  BLOB    NOT NULL,
  seal      TEXT    NOT NULL,
  seal_jwk  BLOB    NOT NULL,
  remote    TEXT    NOT NULL,
  network   TEXT    NOT NULL,
  state     TEXT    NOT NULL,
  subject   TEXT    NOT NULL DEFAULT '',
  decider   TEXT    NOT NULL DEFAULT '',
  created   INTEGER NOT NULL,
  decided   INTEGER NOT NULL DEFAULT 0,
  expires   INTEGER NOT NULL,
  PRIMARY KEY (tenant, id),
  UNIQUE (tenant, device),
  UNIQUE (tenant, user_code),
  UNIQUE (tenant, sign)
) STRICT, WITHOUT ROWID;
CREATE INDEX pairings_end ON pairings (expires);

-- +goose Down
DROP TABLE pairings;
