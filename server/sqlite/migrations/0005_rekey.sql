-- +goose Up
ALTER TABLE subject_keys ADD COLUMN retired INTEGER NOT NULL DEFAULT 0; -- when another key took its place

-- +goose Down
ALTER TABLE subject_keys DROP COLUMN retired;
