-- The schema after migration 38, for new databases. Written by: go test ./server/sqlite -run NewDatabase -update

CREATE TABLE "instance" (
  one    INTEGER PRIMARY KEY CHECK (one = 1),
  issuer TEXT    NOT NULL,
  epoch  INTEGER NOT NULL,
  created     INTEGER NOT NULL
, log_origin TEXT NOT NULL DEFAULT '', restored_at INTEGER NOT NULL DEFAULT 0, superseded_by INTEGER NOT NULL DEFAULT 0) STRICT;

CREATE TABLE server_keys (
  n       INTEGER PRIMARY KEY,
  id      TEXT    NOT NULL,
  role    TEXT    NOT NULL,
  state   TEXT    NOT NULL,
  public  BLOB,
  private BLOB    NOT NULL,
  cert    BLOB,
  created INTEGER NOT NULL, starts INTEGER NOT NULL DEFAULT 0, ends INTEGER NOT NULL DEFAULT 0, origin TEXT NOT NULL DEFAULT '',
  UNIQUE (role, id)
) STRICT;

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
  last_seq    INTEGER NOT NULL DEFAULT 0, proof TEXT NOT NULL DEFAULT '', authority_version INTEGER NOT NULL DEFAULT 1, role TEXT NOT NULL DEFAULT '', name TEXT NOT NULL DEFAULT '', last_seen INTEGER NOT NULL DEFAULT 0,
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

CREATE TABLE subject_keys (
  n       INTEGER PRIMARY KEY,
  tenant  TEXT    NOT NULL,
  subject TEXT    NOT NULL,
  id      TEXT    NOT NULL,
  purpose TEXT    NOT NULL,
  jwk     BLOB    NOT NULL,
  state   TEXT    NOT NULL,
  added   INTEGER NOT NULL, retired INTEGER NOT NULL DEFAULT 0, ends INTEGER NOT NULL DEFAULT 0, name TEXT NOT NULL DEFAULT '',
  UNIQUE (tenant, id)
) STRICT;

CREATE INDEX keys_of ON subject_keys (tenant, subject);

CREATE TABLE codes (
  tenant  TEXT    NOT NULL,
  hash    BLOB    NOT NULL,
  subject TEXT    NOT NULL,
  expires INTEGER NOT NULL,
  created_by   TEXT    NOT NULL,
  sign    TEXT    NOT NULL DEFAULT '', -- the keys that redeemed it; empty until then
  seal    TEXT    NOT NULL DEFAULT '', key_ends INTEGER NOT NULL DEFAULT 0, created_by_key TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (tenant, hash)
) STRICT, WITHOUT ROWID;

CREATE INDEX codes_of ON codes (tenant, subject);

CREATE INDEX codes_end ON codes (expires);

CREATE TABLE "consumed_jtis" (
  tenant  TEXT    NOT NULL,
  subject TEXT    NOT NULL,
  jti     TEXT    NOT NULL,
  expires INTEGER NOT NULL,
  PRIMARY KEY (tenant, subject, jti)
) STRICT, WITHOUT ROWID;

CREATE INDEX spent_end ON "consumed_jtis" (expires);

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
  receipt_key  TEXT    NOT NULL DEFAULT '', entry INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '',
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
  at      INTEGER NOT NULL, entry INTEGER NOT NULL DEFAULT 0,
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
  config_version  INTEGER NOT NULL DEFAULT 0,
  config_at   INTEGER NOT NULL DEFAULT 0,
  state       BLOB,
  state_at    INTEGER NOT NULL DEFAULT 0,
  state_version INTEGER NOT NULL DEFAULT 0, state_by TEXT NOT NULL DEFAULT '', state_by_incarnation INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (tenant, device)
) STRICT, WITHOUT ROWID;

CREATE TABLE pairings (
  tenant    TEXT    NOT NULL,
  id        TEXT    NOT NULL,
  device_code_hash    BLOB    NOT NULL, -- SHA-256 of the device code
  user_code TEXT    NOT NULL,
  requested_id      TEXT    NOT NULL,
  sign      TEXT    NOT NULL,
  sign_jwk  BLOB    NOT NULL,
  seal      TEXT    NOT NULL,
  seal_jwk  BLOB    NOT NULL,
  remote    TEXT    NOT NULL,
  network   TEXT    NOT NULL,
  state     TEXT    NOT NULL,
  subject   TEXT    NOT NULL DEFAULT '',
  decided_by   TEXT    NOT NULL DEFAULT '',
  created   INTEGER NOT NULL,
  decided   INTEGER NOT NULL DEFAULT 0,
  expires   INTEGER NOT NULL, kind TEXT NOT NULL DEFAULT 'device',
  PRIMARY KEY (tenant, id),
  UNIQUE (tenant, device_code_hash),
  UNIQUE (tenant, user_code),
  UNIQUE (tenant, sign)
) STRICT, WITHOUT ROWID;

CREATE INDEX pairings_end ON pairings (expires);

CREATE TABLE "tokens" (
  jti         TEXT    NOT NULL PRIMARY KEY,
  tenant      TEXT    NOT NULL,
  subject     TEXT    NOT NULL,
  assertion       TEXT    NOT NULL, -- the assertion's jti
  incarnation INTEGER NOT NULL,
  key         TEXT    NOT NULL,
  claims_digest        BLOB    NOT NULL, -- hash over what the token gives, and to whom
  issued      INTEGER NOT NULL,
  expires     INTEGER NOT NULL,
  assertion_expires        INTEGER NOT NULL, -- when the assertion is over
  revoked     INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE TABLE audit_entries (
  seq  INTEGER PRIMARY KEY,
  hash BLOB NOT NULL,
  salt BLOB,
  body BLOB
) STRICT;

CREATE TABLE audit_tiles (
  level  INTEGER NOT NULL,
  n      INTEGER NOT NULL,
  root   BLOB    NOT NULL,
  hashes BLOB    NOT NULL,
  PRIMARY KEY (level, n)
) STRICT;

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

CREATE TABLE audit_pruned (
  one     INTEGER PRIMARY KEY CHECK (one = 1),
  through INTEGER NOT NULL,
  retained    INTEGER NOT NULL,
  chain   BLOB    NOT NULL
) STRICT;

CREATE TABLE mqtt_sessions (
  id          INTEGER PRIMARY KEY,
  tenant      TEXT    NOT NULL,
  client      TEXT    NOT NULL,
  subject     TEXT    NOT NULL,
  incarnation INTEGER NOT NULL,
  expiry      INTEGER NOT NULL, -- seconds
  disconnected_at     INTEGER NOT NULL, -- ms; 0: it has its connection
  progress    BLOB
) STRICT;

CREATE TABLE mqtt_subscriptions (
  session    INTEGER NOT NULL,
  filter     TEXT    NOT NULL,
  options    INTEGER NOT NULL,
  identifier INTEGER NOT NULL,
  PRIMARY KEY (session, filter)
) STRICT, WITHOUT ROWID;

CREATE TABLE mqtt_messages (
  id        INTEGER PRIMARY KEY,
  expires   INTEGER NOT NULL, -- ms; 0: never
  receivers BLOB    NOT NULL,
  packet    BLOB    NOT NULL
) STRICT;

CREATE TABLE mqtt_retained (
  tenant  TEXT    NOT NULL,
  topic   TEXT    NOT NULL,
  expires INTEGER NOT NULL,
  packet  BLOB    NOT NULL, subject TEXT NOT NULL DEFAULT '', incarnation INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (tenant, topic)
) STRICT, WITHOUT ROWID;

CREATE TABLE mqtt_wills (
  id          INTEGER PRIMARY KEY,
  tenant      TEXT    NOT NULL,
  client      TEXT    NOT NULL,
  subject     TEXT    NOT NULL,
  incarnation INTEGER NOT NULL,
  token       TEXT    NOT NULL, -- its jti; '' with key and issuer_key: not known
  key         TEXT    NOT NULL,
  issuer_key  TEXT    NOT NULL,
  key_proved      INTEGER NOT NULL,
  due         INTEGER NOT NULL, -- ms; 0: its connection is there
  will        BLOB    NOT NULL
) STRICT;

CREATE TABLE unfinished_commands (
  tenant  TEXT    NOT NULL,
  orderer TEXT    NOT NULL,
  n       INTEGER NOT NULL,
  PRIMARY KEY (tenant, orderer)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER unfinished_added AFTER INSERT ON commands WHEN new.state IN ('queued', 'sent', 'delivered', 'accepted') BEGIN
  INSERT INTO unfinished_commands VALUES (new.tenant, new.orderer, 1) ON CONFLICT DO UPDATE SET n = n + 1;
  UPDATE unfinished_commands SET n = n + 1 WHERE tenant = '' AND orderer = '';
END;

CREATE TRIGGER unfinished_ended AFTER UPDATE OF state ON commands
WHEN old.state IN ('queued', 'sent', 'delivered', 'accepted') AND new.state NOT IN ('queued', 'sent', 'delivered', 'accepted') BEGIN
  UPDATE unfinished_commands SET n = n - 1 WHERE tenant = new.tenant AND orderer = new.orderer;
  UPDATE unfinished_commands SET n = n - 1 WHERE tenant = '' AND orderer = '';
END;

CREATE TRIGGER unfinished_opened AFTER UPDATE OF state ON commands
WHEN old.state NOT IN ('queued', 'sent', 'delivered', 'accepted') AND new.state IN ('queued', 'sent', 'delivered', 'accepted') BEGIN
  UPDATE unfinished_commands SET n = n + 1 WHERE tenant = new.tenant AND orderer = new.orderer;
  UPDATE unfinished_commands SET n = n + 1 WHERE tenant = '' AND orderer = '';
END;

CREATE TRIGGER unfinished_removed AFTER DELETE ON commands WHEN old.state IN ('queued', 'sent', 'delivered', 'accepted') BEGIN
  UPDATE unfinished_commands SET n = n - 1 WHERE tenant = old.tenant AND orderer = old.orderer;
  UPDATE unfinished_commands SET n = n - 1 WHERE tenant = '' AND orderer = '';
END;

CREATE TABLE policy_versions (
  tenant  TEXT    NOT NULL PRIMARY KEY,
  version INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER basis_subject AFTER UPDATE OF kind, state, labels, incarnation, proof, deleted ON subjects BEGIN
  UPDATE subjects SET authority_version = authority_version + 1 WHERE tenant = new.tenant AND id = new.id;
END;

CREATE TRIGGER basis_key_added AFTER INSERT ON subject_keys BEGIN
  UPDATE subjects SET authority_version = authority_version + 1 WHERE tenant = new.tenant AND id = new.subject;
END;

CREATE TRIGGER basis_key_changed AFTER UPDATE ON subject_keys BEGIN
  UPDATE subjects SET authority_version = authority_version + 1 WHERE tenant = new.tenant AND id = new.subject;
END;

CREATE TRIGGER basis_token_revoked AFTER UPDATE OF revoked ON "tokens" BEGIN
  UPDATE subjects SET authority_version = authority_version + 1 WHERE tenant = new.tenant AND id = new.subject;
END;

CREATE TRIGGER basis_policy_added AFTER INSERT ON policies BEGIN
  INSERT INTO policy_versions (tenant, version) VALUES (new.tenant, 1) ON CONFLICT DO UPDATE SET version = version + 1;
END;

CREATE TRIGGER basis_policy_changed AFTER UPDATE ON policies BEGIN
  INSERT INTO policy_versions (tenant, version) VALUES (new.tenant, 1) ON CONFLICT DO UPDATE SET version = version + 1;
END;

CREATE TRIGGER basis_issuer_revoked AFTER UPDATE OF state ON server_keys WHEN new.role = 'issuer' AND new.state = 'revoked' BEGIN
  UPDATE policy_versions SET version = version + 1 WHERE tenant = '';
END;

CREATE INDEX subjects_owners ON subjects (tenant) WHERE role = 'owner' AND deleted = 0;

CREATE TRIGGER role_changed AFTER UPDATE OF role ON subjects WHEN new.role <> old.role BEGIN
  UPDATE subjects SET authority_version = authority_version + 1 WHERE tenant = new.tenant AND id = new.id;
END;

CREATE TABLE clock_mark (
  one     INTEGER PRIMARY KEY CHECK (one = 1),
  certain INTEGER NOT NULL,
  newest  INTEGER NOT NULL
) STRICT;

CREATE INDEX keys_ending ON subject_keys (ends) WHERE state = 'active' AND ends > 0;

CREATE TABLE "bundles" (
  epoch   INTEGER NOT NULL,
  version INTEGER NOT NULL,
  jws     BLOB    NOT NULL,
  starts  INTEGER NOT NULL,
  expires INTEGER NOT NULL,
  PRIMARY KEY (epoch, version)
) STRICT, WITHOUT ROWID;

CREATE TABLE issuers (
  n      INTEGER PRIMARY KEY,
  issuer TEXT NOT NULL UNIQUE,
  until  INTEGER NOT NULL
) STRICT;

CREATE TABLE issuer_use (
  tenant  TEXT NOT NULL,
  subject TEXT NOT NULL,
  issuer  TEXT NOT NULL,
  at      INTEGER NOT NULL,
  PRIMARY KEY (tenant, subject)
) STRICT, WITHOUT ROWID;

CREATE INDEX codes_by ON codes (tenant, created_by);

CREATE TABLE "notices" (
  tenant  TEXT    NOT NULL,
  kind    TEXT    NOT NULL,
  object  TEXT    NOT NULL,
  at      INTEGER NOT NULL,
  expires INTEGER NOT NULL,
  PRIMARY KEY (tenant, kind, object)
) STRICT, WITHOUT ROWID;

CREATE INDEX subjects_state ON subjects (tenant, kind, state, id) WHERE deleted = 0;

CREATE INDEX subjects_kind ON subjects (tenant, kind, id) WHERE deleted = 0;

CREATE INDEX commands_state ON commands (tenant, state, id);

CREATE INDEX commands_settled ON commands (settled_at) WHERE settled_at > 0;

CREATE INDEX subjects_created ON subjects (tenant, kind, created, id) WHERE deleted = 0;

CREATE INDEX subjects_changed ON subjects (tenant, kind, changed, id) WHERE deleted = 0;

CREATE TABLE subject_counts (
  tenant TEXT    NOT NULL,
  kind   TEXT    NOT NULL,
  state  TEXT    NOT NULL,
  n      INTEGER NOT NULL,
  PRIMARY KEY (tenant, kind, state)
) STRICT, WITHOUT ROWID;

CREATE TABLE label_counts (
  tenant TEXT    NOT NULL,
  kind   TEXT    NOT NULL,
  key    TEXT    NOT NULL,
  value  TEXT    NOT NULL,
  n      INTEGER NOT NULL,
  PRIMARY KEY (tenant, kind, key, value)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER subject_counted AFTER INSERT ON subjects WHEN new.deleted = 0 BEGIN
  INSERT INTO subject_counts VALUES (new.tenant, new.kind, new.state, 1) ON CONFLICT DO UPDATE SET n = n + 1;
END;

CREATE TRIGGER subject_recounted AFTER UPDATE OF kind, state, deleted ON subjects WHEN new.state <> old.state OR new.deleted <> old.deleted OR new.kind <> old.kind BEGIN
  UPDATE subject_counts SET n = n - 1 WHERE old.deleted = 0 AND tenant = old.tenant AND kind = old.kind AND state = old.state;
  INSERT INTO subject_counts SELECT new.tenant, new.kind, new.state, 1 WHERE new.deleted = 0 ON CONFLICT DO UPDATE SET n = n + 1;
END;

CREATE TRIGGER subject_uncounted AFTER DELETE ON subjects WHEN old.deleted = 0 BEGIN
  UPDATE subject_counts SET n = n - 1 WHERE tenant = old.tenant AND kind = old.kind AND state = old.state;
END;

CREATE TRIGGER label_counted AFTER INSERT ON labels BEGIN
  INSERT INTO label_counts SELECT new.tenant, kind, new.key, new.value, 1 FROM subjects WHERE tenant = new.tenant AND id = new.subject ON CONFLICT DO UPDATE SET n = n + 1;
END;

CREATE TRIGGER label_uncounted AFTER DELETE ON labels BEGIN
  UPDATE label_counts SET n = n - 1 WHERE tenant = old.tenant AND key = old.key AND value = old.value
    AND kind = (SELECT kind FROM subjects WHERE tenant = old.tenant AND id = old.subject);
  DELETE FROM label_counts WHERE tenant = old.tenant AND key = old.key AND value = old.value
    AND kind = (SELECT kind FROM subjects WHERE tenant = old.tenant AND id = old.subject) AND n = 0;
END;

CREATE INDEX subjects_last_seen ON subjects (tenant, kind, last_seen, id) WHERE deleted = 0;

INSERT INTO audit_pruned VALUES (1, 0, 0, X'0000000000000000000000000000000000000000000000000000000000000000');

INSERT INTO clock_mark VALUES (1, 0, 0);

INSERT INTO policy_versions VALUES ('', 1);

INSERT INTO unfinished_commands VALUES ('', '', 0);
