-- +goose Up
-- Lists read what they show: devices by kind and state, commands by state.
CREATE INDEX subjects_state ON subjects (tenant, kind, state, id) WHERE deleted = 0;
CREATE INDEX subjects_kind ON subjects (tenant, kind, id) WHERE deleted = 0;
CREATE INDEX commands_state ON commands (tenant, state, id);

-- Ended commands by their end, for their retention. A command that a build of before ended without noting when counts from its
-- last moment.
UPDATE commands SET settled_at = expires WHERE settled_at = 0 AND state NOT IN ('queued', 'sent', 'delivered', 'accepted');
CREATE INDEX commands_settled ON commands (settled_at) WHERE settled_at > 0;

-- +goose Down
DROP INDEX commands_settled;
DROP INDEX commands_state;
DROP INDEX subjects_kind;
DROP INDEX subjects_state;
