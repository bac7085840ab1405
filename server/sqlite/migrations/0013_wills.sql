-- +goose Up
-- Every will that stands: of connections, and of those that ended and whose will is not published yet. It stands on the token that its
-- connection had last, whose permissions allow its topic; what the token's revocation, its keys and today's policy say is asked when it is due.
CREATE TABLE mqtt_wills (
  id          INTEGER PRIMARY KEY,
  tenant      TEXT    NOT NULL,
  client      TEXT    NOT NULL,
  subject     TEXT    NOT NULL,
  incarnation INTEGER NOT NULL,
  token       TEXT    NOT NULL, -- its jti; '' with key and issuer_key: not known
  key         TEXT    NOT NULL,
  issuer_key  TEXT    NOT NULL,
  proved      INTEGER NOT NULL,
  due         INTEGER NOT NULL, -- ms; 0: its connection is there
  will        BLOB    NOT NULL
) STRICT;
INSERT INTO mqtt_wills SELECT id, tenant, client, subject, incarnation, '', '', '', 0, will_at, will FROM mqtt_sessions WHERE will IS NOT NULL;
ALTER TABLE mqtt_sessions DROP COLUMN will;
ALTER TABLE mqtt_sessions DROP COLUMN will_at;

-- +goose Down
ALTER TABLE mqtt_sessions ADD COLUMN will BLOB;
ALTER TABLE mqtt_sessions ADD COLUMN will_at INTEGER NOT NULL DEFAULT 0;
UPDATE mqtt_sessions SET will = w.will, will_at = w.due FROM mqtt_wills AS w WHERE w.tenant = mqtt_sessions.tenant AND w.client = mqtt_sessions.client;
DROP TABLE mqtt_wills;
