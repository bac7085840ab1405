-- +goose Up
-- Who reported a state, and in which of its incarnations. States of before have nobody, and are given as they were.
ALTER TABLE twins ADD COLUMN state_by TEXT NOT NULL DEFAULT '';
ALTER TABLE twins ADD COLUMN state_by_incarnation INTEGER NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE twins DROP COLUMN state_by_incarnation;
ALTER TABLE twins DROP COLUMN state_by;
