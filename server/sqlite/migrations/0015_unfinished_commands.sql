-- +goose Up
-- How many commands of each orderer are not final; of the empty tenant and orderer: of all. Triggers count, so that no statement that
-- changes a state can forget to, and adding a command looks at two rows however many there are.
CREATE TABLE unfinished_commands (
  tenant  TEXT    NOT NULL,
  orderer TEXT    NOT NULL,
  n       INTEGER NOT NULL,
  PRIMARY KEY (tenant, orderer)
) STRICT, WITHOUT ROWID;
INSERT INTO unfinished_commands SELECT tenant, orderer, count(*) FROM commands WHERE state IN ('queued', 'sent', 'delivered', 'accepted') GROUP BY tenant, orderer;
INSERT INTO unfinished_commands SELECT '', '', coalesce(sum(n), 0) FROM unfinished_commands;

-- +goose StatementBegin
CREATE TRIGGER unfinished_added AFTER INSERT ON commands WHEN new.state IN ('queued', 'sent', 'delivered', 'accepted') BEGIN
  INSERT INTO unfinished_commands VALUES (new.tenant, new.orderer, 1) ON CONFLICT DO UPDATE SET n = n + 1;
  UPDATE unfinished_commands SET n = n + 1 WHERE tenant = '' AND orderer = '';
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER unfinished_ended AFTER UPDATE OF state ON commands
WHEN old.state IN ('queued', 'sent', 'delivered', 'accepted') AND new.state NOT IN ('queued', 'sent', 'delivered', 'accepted') BEGIN
  UPDATE unfinished_commands SET n = n - 1 WHERE tenant = new.tenant AND orderer = new.orderer;
  UPDATE unfinished_commands SET n = n - 1 WHERE tenant = '' AND orderer = '';
END;
-- +goose StatementEnd
-- A receipt that comes after a command's end can open it again.
-- +goose StatementBegin
CREATE TRIGGER unfinished_opened AFTER UPDATE OF state ON commands
WHEN old.state NOT IN ('queued', 'sent', 'delivered', 'accepted') AND new.state IN ('queued', 'sent', 'delivered', 'accepted') BEGIN
  UPDATE unfinished_commands SET n = n + 1 WHERE tenant = new.tenant AND orderer = new.orderer;
  UPDATE unfinished_commands SET n = n + 1 WHERE tenant = '' AND orderer = '';
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER unfinished_removed AFTER DELETE ON commands WHEN old.state IN ('queued', 'sent', 'delivered', 'accepted') BEGIN
  UPDATE unfinished_commands SET n = n - 1 WHERE tenant = old.tenant AND orderer = old.orderer;
  UPDATE unfinished_commands SET n = n - 1 WHERE tenant = '' AND orderer = '';
END;
-- +goose StatementEnd

-- +goose Down
DROP TRIGGER unfinished_removed;
DROP TRIGGER unfinished_opened;
DROP TRIGGER unfinished_ended;
DROP TRIGGER unfinished_added;
DROP TABLE unfinished_commands;
