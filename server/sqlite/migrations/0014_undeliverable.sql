-- +goose Up
-- Why a command could not be delivered, as JSON; empty for all others.
ALTER TABLE commands ADD COLUMN reason TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE commands DROP COLUMN reason;
