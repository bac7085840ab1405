-- +goose Up
-- Lists in each order are read from an index.
CREATE INDEX subjects_created ON subjects (tenant, kind, created, id) WHERE deleted = 0;
CREATE INDEX subjects_changed ON subjects (tenant, kind, changed, id) WHERE deleted = 0;

-- How many subjects there are in each state, and with each label. Triggers count them in the transaction of each change.
CREATE TABLE subject_counts (
  tenant TEXT    NOT NULL,
  kind   TEXT    NOT NULL,
  state  TEXT    NOT NULL,
  n      INTEGER NOT NULL,
  PRIMARY KEY (tenant, kind, state)
) STRICT, WITHOUT ROWID;
CREATE TABLE label_counts (
  tenant TEXT    NOT NULL,
  kind   TEXT    NOT NULL,
  key    TEXT    NOT NULL,
  value  TEXT    NOT NULL,
  n      INTEGER NOT NULL,
  PRIMARY KEY (tenant, kind, key, value)
) STRICT, WITHOUT ROWID;
INSERT INTO subject_counts SELECT tenant, kind, state, count(*) FROM subjects WHERE deleted = 0 GROUP BY tenant, kind, state;
INSERT INTO label_counts SELECT l.tenant, s.kind, l.key, l.value, count(*) FROM labels l JOIN subjects s ON s.tenant = l.tenant AND s.id = l.subject GROUP BY 1, 2, 3, 4;

-- +goose StatementBegin
CREATE TRIGGER subject_counted AFTER INSERT ON subjects WHEN new.deleted = 0 BEGIN
  INSERT INTO subject_counts VALUES (new.tenant, new.kind, new.state, 1) ON CONFLICT DO UPDATE SET n = n + 1;
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER subject_recounted AFTER UPDATE OF kind, state, deleted ON subjects WHEN new.state <> old.state OR new.deleted <> old.deleted OR new.kind <> old.kind BEGIN
  UPDATE subject_counts SET n = n - 1 WHERE old.deleted = 0 AND tenant = old.tenant AND kind = old.kind AND state = old.state;
  INSERT INTO subject_counts SELECT new.tenant, new.kind, new.state, 1 WHERE new.deleted = 0 ON CONFLICT DO UPDATE SET n = n + 1;
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER subject_uncounted AFTER DELETE ON subjects WHEN old.deleted = 0 BEGIN
  UPDATE subject_counts SET n = n - 1 WHERE tenant = old.tenant AND kind = old.kind AND state = old.state;
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER label_counted AFTER INSERT ON labels BEGIN
  INSERT INTO label_counts SELECT new.tenant, kind, new.key, new.value, 1 FROM subjects WHERE tenant = new.tenant AND id = new.subject ON CONFLICT DO UPDATE SET n = n + 1;
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER label_uncounted AFTER DELETE ON labels BEGIN
  UPDATE label_counts SET n = n - 1 WHERE tenant = old.tenant AND key = old.key AND value = old.value
    AND kind = (SELECT kind FROM subjects WHERE tenant = old.tenant AND id = old.subject);
  DELETE FROM label_counts WHERE tenant = old.tenant AND key = old.key AND value = old.value
    AND kind = (SELECT kind FROM subjects WHERE tenant = old.tenant AND id = old.subject) AND n = 0;
END;
-- +goose StatementEnd

-- +goose Down
DROP TRIGGER label_uncounted;
DROP TRIGGER label_counted;
DROP TRIGGER subject_uncounted;
DROP TRIGGER subject_recounted;
DROP TRIGGER subject_counted;
DROP TABLE label_counts;
DROP TABLE subject_counts;
DROP INDEX subjects_changed;
DROP INDEX subjects_created;
