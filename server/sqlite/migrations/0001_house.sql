-- +goose Up
CREATE TABLE house (
  one    INTEGER PRIMARY KEY CHECK (one = 1),
  issuer TEXT    NOT NULL,
  epoch  INTEGER NOT NULL,
  at     INTEGER NOT NULL
) STRICT;

CREATE TABLE server_keys (
  n       INTEGER PRIMARY KEY,
  id      TEXT    NOT NULL,
  role    TEXT    NOT NULL,
  state   TEXT    NOT NULL,
  public  BLOB,
  private BLOB    NOT NULL,
  cert    BLOB,
  created INTEGER NOT NULL,
  UNIQUE (role, id)
) STRICT;

CREATE TABLE bundles (
  version INTEGER PRIMARY KEY,
  jws     BLOB    NOT NULL,
  expires INTEGER NOT NULL
) STRICT;

-- A deleted subject stays as a tombstone: its id never means another thing.
CREATE TABLE subjects (
  tenant      TEXT    NOT NULL,
  id          TEXT    NOT NULL,
  kind        TEXT    NOT NULL,
  state       TEXT    NOT NULL,
  labels      TEXT    NOT NULL,
  version     INTEGER NOT NULL,
  incarnation INTEGER NOT NULL,
  created     INTEGER NOT NULL,
  changed     INTEGER NOT NULL,
  deleted     INTEGER NOT NULL DEFAULT 0,
  last_seq    INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE labels (
  tenant  TEXT NOT NULL,
  key     TEXT NOT NULL,
  value   TEXT NOT NULL,
  subject TEXT NOT NULL,
  PRIMARY KEY (tenant, key, value, subject)
) STRICT, WITHOUT ROWID;
CREATE INDEX labels_of ON labels (tenant, subject);

-- A key belongs to one subject in its tenant, for ever.
CREATE TABLE subject_keys (
  n       INTEGER PRIMARY KEY,
  tenant  TEXT    NOT NULL,
  subject TEXT    NOT NULL,
  id      TEXT    NOT NULL,
  purpose TEXT    NOT NULL,
  jwk     BLOB    NOT NULL,
  state   TEXT    NOT NULL,
  added   INTEGER NOT NULL,
  UNIQUE (tenant, id)
) STRICT;
CREATE INDEX keys_of ON subject_keys (tenant, subject);

CREATE TABLE codes (
  tenant  TEXT    NOT NULL,
  hash    BLOB    NOT NULL,
  subject TEXT    NOT NULL,
  expires INTEGER NOT NULL,
  maker   TEXT    NOT NULL,
  sign    TEXT    NOT NULL DEFAULT '', -- the keys that redeemed it; empty until then
  seal    TEXT    NOT NULL DEFAULT '',
  PRIMARY KEY (tenant, hash)
) STRICT, WITHOUT ROWID;
CREATE INDEX codes_of ON codes (tenant, subject);
CREATE INDEX codes_end ON codes (expires);

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

CREATE TABLE spent (
  tenant  TEXT    NOT NULL,
  subject TEXT    NOT NULL,
  jti     TEXT    NOT NULL,
  expires INTEGER NOT NULL,
  PRIMARY KEY (tenant, subject, jti)
) STRICT, WITHOUT ROWID;
CREATE INDEX spent_end ON spent (expires);

-- A deleted policy keeps its row, so that its versions never start again.
CREATE TABLE policies (
  tenant  TEXT    NOT NULL,
  name    TEXT    NOT NULL,
  version INTEGER NOT NULL,
  source  BLOB    NOT NULL,
  changed INTEGER NOT NULL,
  deleted INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (tenant, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE commands (
  tenant       TEXT    NOT NULL,
  id           TEXT    NOT NULL,
  device       TEXT    NOT NULL,
  incarnation  INTEGER NOT NULL,
  epoch        INTEGER NOT NULL,
  seq          INTEGER NOT NULL,
  function     TEXT    NOT NULL,
  args         BLOB    NOT NULL,
  args_hash    TEXT    NOT NULL,
  signed_order TEXT    NOT NULL,
  orderer      TEXT    NOT NULL,
  orderer_key  TEXT    NOT NULL,
  state        TEXT    NOT NULL,
  created      INTEGER NOT NULL,
  expires      INTEGER NOT NULL,
  sent_at      INTEGER NOT NULL DEFAULT 0,
  delivered_at INTEGER NOT NULL DEFAULT 0,
  settled_at   INTEGER NOT NULL DEFAULT 0,
  status       TEXT    NOT NULL DEFAULT '',
  receipt      BLOB,
  receipt_key  TEXT    NOT NULL DEFAULT '',
  PRIMARY KEY (tenant, id)
) STRICT;
CREATE UNIQUE INDEX commands_seq ON commands (tenant, device, seq);
CREATE INDEX commands_by ON commands (tenant, orderer, id);
CREATE INDEX commands_device ON commands (tenant, device, id);
CREATE INDEX commands_waiting ON commands (tenant, device, seq) WHERE state IN ('queued', 'sent');
CREATE INDEX commands_live ON commands (tenant, device) WHERE state IN ('queued', 'sent', 'delivered', 'accepted');
CREATE INDEX commands_end ON commands (expires) WHERE state IN ('queued', 'sent', 'delivered', 'accepted');

CREATE TABLE handovers (
  n       INTEGER PRIMARY KEY,
  tenant  TEXT    NOT NULL,
  command TEXT    NOT NULL,
  hash    TEXT    NOT NULL,
  nonce   TEXT    NOT NULL,
  jws     BLOB    NOT NULL,
  at      INTEGER NOT NULL,
  UNIQUE (tenant, command, hash)
) STRICT;

CREATE TABLE idempotency (
  tenant  TEXT    NOT NULL,
  caller  TEXT    NOT NULL,
  key     TEXT    NOT NULL,
  hash    BLOB    NOT NULL,
  command TEXT    NOT NULL,
  expires INTEGER NOT NULL,
  PRIMARY KEY (tenant, caller, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_end ON idempotency (expires);

CREATE TABLE functions (
  tenant TEXT NOT NULL,
  device TEXT NOT NULL,
  name   TEXT NOT NULL,
  schema BLOB,
  PRIMARY KEY (tenant, device, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE twins (
  tenant      TEXT    NOT NULL,
  device      TEXT    NOT NULL,
  config      BLOB,
  config_ver  INTEGER NOT NULL DEFAULT 0,
  config_at   INTEGER NOT NULL DEFAULT 0,
  state       BLOB,
  state_at    INTEGER NOT NULL DEFAULT 0,
  state_count INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (tenant, device)
) STRICT, WITHOUT ROWID;

-- body holds the bytes that are hashed; the columns beside it only find it.
CREATE TABLE audit_entries (
  seq    INTEGER PRIMARY KEY,
  tenant TEXT    NOT NULL,
  at     INTEGER NOT NULL,
  kind   TEXT    NOT NULL,
  body   BLOB    NOT NULL
) STRICT;

-- +goose Down
DROP TABLE audit_entries;
DROP TABLE twins;
DROP TABLE functions;
DROP TABLE idempotency;
DROP TABLE handovers;
DROP TABLE commands;
DROP TABLE policies;
DROP TABLE spent;
DROP TABLE tokens;
DROP TABLE codes;
DROP TABLE subject_keys;
DROP TABLE labels;
DROP TABLE subjects;
DROP TABLE bundles;
DROP TABLE server_keys;
DROP TABLE house;
