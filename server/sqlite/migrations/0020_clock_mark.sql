-- +goose Up
-- What the server knows of the time from one start to the next, in milliseconds since 1970; 0: nothing yet.
CREATE TABLE clock_mark (
  one     INTEGER PRIMARY KEY CHECK (one = 1),
  certain INTEGER NOT NULL,
  newest  INTEGER NOT NULL
) STRICT;
-- A server of before had trusted its clock when it signed the last checkpoint of its log.
INSERT INTO clock_mark SELECT 1, coalesce(max(at), 0), coalesce(max(at), 0) FROM (SELECT at FROM audit_checkpoints ORDER BY size DESC LIMIT 1);

-- +goose Down
DROP TABLE clock_mark;
