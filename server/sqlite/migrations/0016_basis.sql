-- +goose Up
-- What an act was decided on has a version, which the act's own transaction compares. Triggers raise it,
-- so that no statement that takes a right away can forget to.
ALTER TABLE subjects ADD COLUMN basis INTEGER NOT NULL DEFAULT 1;

-- The version of a tenant's policies; the row of the empty tenant is that of the issuer keys.
CREATE TABLE policy_versions (
  tenant  TEXT    NOT NULL PRIMARY KEY,
  version INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO policy_versions (tenant, version) VALUES ('', 1);

-- +goose StatementBegin
CREATE TRIGGER basis_subject AFTER UPDATE OF kind, state, labels, incarnation, proof, deleted ON subjects BEGIN
  UPDATE subjects SET basis = basis + 1 WHERE tenant = new.tenant AND id = new.id;
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER basis_key_added AFTER INSERT ON subject_keys BEGIN
  UPDATE subjects SET basis = basis + 1 WHERE tenant = new.tenant AND id = new.subject;
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER basis_key_changed AFTER UPDATE ON subject_keys BEGIN
  UPDATE subjects SET basis = basis + 1 WHERE tenant = new.tenant AND id = new.subject;
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER basis_token_revoked AFTER UPDATE OF revoked ON issued BEGIN
  UPDATE subjects SET basis = basis + 1 WHERE tenant = new.tenant AND id = new.subject;
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER basis_policy_added AFTER INSERT ON policies BEGIN
  INSERT INTO policy_versions (tenant, version) VALUES (new.tenant, 1) ON CONFLICT DO UPDATE SET version = version + 1;
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER basis_policy_changed AFTER UPDATE ON policies BEGIN
  INSERT INTO policy_versions (tenant, version) VALUES (new.tenant, 1) ON CONFLICT DO UPDATE SET version = version + 1;
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER basis_issuer_revoked AFTER UPDATE OF state ON server_keys WHEN new.role = 'issuer' AND new.state = 'revoked' BEGIN
  UPDATE policy_versions SET version = version + 1 WHERE tenant = '';
END;
-- +goose StatementEnd

-- +goose Down
DROP TRIGGER basis_issuer_revoked;
DROP TRIGGER basis_policy_changed;
DROP TRIGGER basis_policy_added;
DROP TRIGGER basis_token_revoked;
DROP TRIGGER basis_key_changed;
DROP TRIGGER basis_key_added;
DROP TRIGGER basis_subject;
DROP TABLE policy_versions;
ALTER TABLE subjects DROP COLUMN basis;
