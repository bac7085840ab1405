-- +goose Up
-- When a subject last began or ended a session or a request, in milliseconds and to ten minutes; 0: never.
ALTER TABLE subjects ADD COLUMN last_seen INTEGER NOT NULL DEFAULT 0;
CREATE INDEX subjects_last_seen ON subjects (tenant, kind, last_seen, id) WHERE deleted = 0;

-- +goose Down
DROP INDEX subjects_last_seen;
ALTER TABLE subjects DROP COLUMN last_seen;
