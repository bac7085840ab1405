-- +goose Up
-- Tables and columns get the terms that the code and the documents use. No row changes; SQLite rewrites the triggers and
-- indexes that name them.
ALTER TABLE house RENAME TO instance;
ALTER TABLE instance RENAME COLUMN at TO created;
ALTER TABLE issued RENAME TO tokens;
ALTER TABLE tokens RENAME COLUMN spent TO assertion;               -- jti of the assertion that was exchanged
ALTER TABLE tokens RENAME COLUMN says TO claims_digest;
ALTER TABLE tokens RENAME COLUMN ends TO assertion_expires;
ALTER TABLE spent RENAME TO consumed_jtis;
ALTER TABLE subjects RENAME COLUMN basis TO authority_version;
ALTER TABLE codes RENAME COLUMN maker TO created_by;
ALTER TABLE pairings RENAME COLUMN device TO device_code_hash;
ALTER TABLE pairings RENAME COLUMN wish TO requested_id;
ALTER TABLE pairings RENAME COLUMN decider TO decided_by;
ALTER TABLE twins RENAME COLUMN config_ver TO config_version;
ALTER TABLE twins RENAME COLUMN state_count TO state_version;
ALTER TABLE audit_pruned RENAME COLUMN kept TO retained;
ALTER TABLE mqtt_sessions RENAME COLUMN left_at TO disconnected_at; -- ms; 0: it has its connection
ALTER TABLE mqtt_wills RENAME COLUMN proved TO key_proved;

-- +goose Down
ALTER TABLE mqtt_wills RENAME COLUMN key_proved TO proved;
ALTER TABLE mqtt_sessions RENAME COLUMN disconnected_at TO left_at;
ALTER TABLE audit_pruned RENAME COLUMN retained TO kept;
ALTER TABLE twins RENAME COLUMN state_version TO state_count;
ALTER TABLE twins RENAME COLUMN config_version TO config_ver;
ALTER TABLE pairings RENAME COLUMN decided_by TO decider;
ALTER TABLE pairings RENAME COLUMN requested_id TO wish;
ALTER TABLE pairings RENAME COLUMN device_code_hash TO device;
ALTER TABLE codes RENAME COLUMN created_by TO maker;
ALTER TABLE subjects RENAME COLUMN authority_version TO basis;
ALTER TABLE consumed_jtis RENAME TO spent;
ALTER TABLE tokens RENAME COLUMN assertion_expires TO ends;
ALTER TABLE tokens RENAME COLUMN claims_digest TO says;
ALTER TABLE tokens RENAME COLUMN assertion TO spent;
ALTER TABLE tokens RENAME TO issued;
ALTER TABLE instance RENAME COLUMN created TO at;
ALTER TABLE instance RENAME TO house;
