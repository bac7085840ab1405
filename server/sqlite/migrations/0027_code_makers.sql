-- +goose Up
-- The key that the maker of a code used: the code is deleted if the key is revoked. Empty for codes of before, and for those of the
-- server's machine, which have no maker either.
ALTER TABLE codes ADD COLUMN created_by_key TEXT NOT NULL DEFAULT '';
CREATE INDEX codes_by ON codes (tenant, created_by);

-- +goose Down
DROP INDEX codes_by;
ALTER TABLE codes DROP COLUMN created_by_key;
