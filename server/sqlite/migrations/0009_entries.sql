-- +goose Up
-- Which entry of the log speaks of it: of a command, the one of its last receipt. 0 for what is older than this.
ALTER TABLE commands ADD COLUMN entry INTEGER NOT NULL DEFAULT 0;
ALTER TABLE handovers ADD COLUMN entry INTEGER NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE handovers DROP COLUMN entry;
ALTER TABLE commands DROP COLUMN entry;
