-- +goose Up
-- What lies beside the MQTT door: sessions that outlive their connection, messages for
-- those who are away, retained messages. Packets are encoded PUBLISHes.
CREATE TABLE mqtt_sessions (
  id          INTEGER PRIMARY KEY,
  tenant      TEXT    NOT NULL,
  client      TEXT    NOT NULL,
  subject     TEXT    NOT NULL,
  incarnation INTEGER NOT NULL,
  expiry      INTEGER NOT NULL, -- seconds
  left_at     INTEGER NOT NULL, -- ms; 0: it has its connection
  will        BLOB,
  will_at     INTEGER NOT NULL,
  progress    BLOB
) STRICT;

CREATE TABLE mqtt_subscriptions (
  session    INTEGER NOT NULL,
  filter     TEXT    NOT NULL,
  options    INTEGER NOT NULL,
  identifier INTEGER NOT NULL,
  PRIMARY KEY (session, filter)
) STRICT, WITHOUT ROWID;

-- One row for each message, however many wait for it: receivers names them.
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
  packet  BLOB    NOT NULL,
  PRIMARY KEY (tenant, topic)
) STRICT, WITHOUT ROWID;

-- +goose Down
DROP TABLE mqtt_retained;
DROP TABLE mqtt_messages;
DROP TABLE mqtt_subscriptions;
DROP TABLE mqtt_sessions;
