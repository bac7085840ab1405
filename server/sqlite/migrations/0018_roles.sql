-- +goose Up
-- The role of an operator is a field of its own; before, the label role made an owner.
ALTER TABLE subjects ADD COLUMN role TEXT NOT NULL DEFAULT '';
UPDATE subjects SET role = 'owner', labels = json_remove(labels, '$.role') WHERE kind = 'operator' AND json_extract(labels, '$.role') = 'owner';
DELETE FROM labels WHERE key = 'role' AND EXISTS (SELECT 1 FROM subjects s WHERE s.tenant = labels.tenant AND s.id = labels.subject AND s.role = 'owner');
CREATE INDEX subjects_owners ON subjects (tenant) WHERE role = 'owner' AND deleted = 0;

-- +goose StatementBegin
CREATE TRIGGER role_changed AFTER UPDATE OF role ON subjects WHEN new.role <> old.role BEGIN
  UPDATE subjects SET basis = basis + 1 WHERE tenant = new.tenant AND id = new.id;
END;
-- +goose StatementEnd

-- +goose Down
DROP INDEX subjects_owners;
DROP TRIGGER role_changed;
UPDATE subjects SET labels = json_set(labels, '$.role', 'owner') WHERE role = 'owner';
INSERT INTO labels (tenant, key, value, subject) SELECT tenant, 'role', 'owner', id FROM subjects WHERE role = 'owner';
ALTER TABLE subjects DROP COLUMN role;
