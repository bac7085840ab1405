-- +goose Up
-- What people call a device. Nothing is decided by it.
ALTER TABLE subjects ADD COLUMN name TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE subjects DROP COLUMN name;
