-- +goose Up
ALTER TABLE subjects ADD COLUMN proof TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE subjects DROP COLUMN proof;
