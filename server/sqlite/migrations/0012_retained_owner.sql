-- +goose Up
-- Who published a retained message: a subject, in one of its lives. Rows of before, and
-- the server's own, have no owner.
ALTER TABLE mqtt_retained ADD COLUMN subject TEXT NOT NULL DEFAULT '';
ALTER TABLE mqtt_retained ADD COLUMN incarnation INTEGER NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE mqtt_retained DROP COLUMN incarnation;
ALTER TABLE mqtt_retained DROP COLUMN subject;
