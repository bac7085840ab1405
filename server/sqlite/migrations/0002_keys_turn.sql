-- +goose Up
ALTER TABLE server_keys ADD COLUMN starts INTEGER NOT NULL DEFAULT 0; -- when it signs, or began to
ALTER TABLE server_keys ADD COLUMN ends INTEGER NOT NULL DEFAULT 0;   -- when a retiring one is gone
UPDATE server_keys SET starts = created;
ALTER TABLE bundles ADD COLUMN starts INTEGER NOT NULL DEFAULT 0;     -- from when it is published

-- +goose Down
ALTER TABLE bundles DROP COLUMN starts;
ALTER TABLE server_keys DROP COLUMN ends;
ALTER TABLE server_keys DROP COLUMN starts;
