-- +goose Up
-- A pairing has a kind: that of a device, or of an operator (a login), which has no sealing key (seal and seal_jwk are empty).
ALTER TABLE pairings ADD COLUMN kind TEXT NOT NULL DEFAULT 'device';

-- +goose Down
DELETE FROM pairings WHERE kind <> 'device';
ALTER TABLE pairings DROP COLUMN kind;
