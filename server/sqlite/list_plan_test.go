package sqlite

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/registry"
)

// A page of a list is read in order from an index that has what the page is chosen by: no row of another device, orderer, state,
// kind or label is read, and nothing is sorted.
func TestListsReadWhatTheyShow(t *testing.T) {
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	t.Cleanup(func() { _ = s.Close() })
	const tenant = watchword.DefaultTenant
	for name, x := range map[string]struct {
		query string
		args  []any
		want  []string
	}{
		"commands":                         query(commandsQuery(tenant, command.Filter{}, "", 10)).want("SEARCH commands USING INDEX sqlite_autoindex_commands_1 (tenant=?)"),
		"commands, second page":            query(commandsQuery(tenant, command.Filter{State: watchword.Queued}, "cmd_1", 10)).want("SEARCH commands USING INDEX commands_state (tenant=? AND state=? AND id<?)"),
		"commands by state":                query(commandsQuery(tenant, command.Filter{State: watchword.Queued}, "", 10)).want("SEARCH commands USING INDEX commands_state (tenant=? AND state=?)"),
		"commands of a device":             query(commandsQuery(tenant, command.Filter{Device: "d", State: watchword.Queued}, "", 10)).want("SEARCH commands USING INDEX commands_device (tenant=? AND device=?)"),
		"commands of an orderer":           query(commandsQuery(tenant, command.Filter{By: "o"}, "cmd_1", 10)).want("SEARCH commands USING INDEX commands_by (tenant=? AND orderer=? AND id<?)"),
		"walk by id":                       query(walkQuery(tenant, registry.Walk{Kind: watchword.Device, Order: registry.OrderID, After: &registry.Position{ID: "d"}}, 10)).want("SEARCH s USING INDEX subjects_kind (tenant=? AND kind=? AND id>?)"),
		"walk by id, back":                 query(walkQuery(tenant, registry.Walk{Kind: watchword.Device, Order: registry.OrderID, Descending: true, After: &registry.Position{ID: "d"}}, 10)).want("SEARCH s USING INDEX subjects_kind (tenant=? AND kind=? AND id<?)"),
		"walk by id in a state":            query(walkQuery(tenant, registry.Walk{Kind: watchword.Device, Order: registry.OrderID, State: watchword.New, After: &registry.Position{ID: "d"}}, 10)).want("SEARCH s USING INDEX subjects_state (tenant=? AND kind=? AND state=? AND id>?)"),
		"walk by creation":                 query(walkQuery(tenant, registry.Walk{Kind: watchword.Device, Order: registry.OrderCreated, After: &registry.Position{ID: "d"}}, 10)).want("SEARCH s USING INDEX subjects_created (tenant=? AND kind=? AND (created,id)>(?,?))"),
		"walk by creation, from its start": query(walkQuery(tenant, registry.Walk{Kind: watchword.Device, Order: registry.OrderCreated, Descending: true}, 10)).want("SEARCH s USING INDEX subjects_created (tenant=? AND kind=?)"),
		"walk by change, back":             query(walkQuery(tenant, registry.Walk{Kind: watchword.Device, Order: registry.OrderChanged, Descending: true, After: &registry.Position{ID: "d"}}, 10)).want("SEARCH s USING INDEX subjects_changed (tenant=? AND kind=? AND (changed,id)<(?,?))"),
		"walk by state":                    query(walkQuery(tenant, registry.Walk{Kind: watchword.Device, Order: registry.OrderState, After: &registry.Position{ID: "d"}}, 10)).want("SEARCH s USING INDEX subjects_state (tenant=? AND kind=? AND (state,id)>(?,?))"),
		"walk by last seen":                query(walkQuery(tenant, registry.Walk{Kind: watchword.Device, Order: registry.OrderLastSeen, After: &registry.Position{ID: "d"}}, 10)).want("SEARCH s USING INDEX subjects_last_seen (tenant=? AND kind=? AND (last_seen,id)>(?,?))"),
		"walk by label": query(walkQuery(tenant, registry.Walk{Kind: watchword.Device, Order: registry.OrderID, Label: &watchword.LabelTest{Key: "a", Values: []string{"b"}}, Descending: true, After: &registry.Position{ID: "d"}}, 10)).want(
			"SEARCH l USING PRIMARY KEY (tenant=? AND key=? AND value=? AND subject<?)", "SEARCH s USING PRIMARY KEY (tenant=? AND id=?)"),
	} {
		var got []string
		for _, line := range plan(t, s, x.query) {
			if !strings.HasPrefix(line, "CORRELATED") {
				got = append(got, line)
			}
		}
		if strings.Join(got, "\n") != strings.Join(x.want, "\n") {
			t.Errorf("%s: the plan is\n\t%s\nwant\n\t%s", name, strings.Join(got, "\n\t"), strings.Join(x.want, "\n\t"))
		}
		if n := strings.Count(x.query, "?"); n != len(x.args) {
			t.Errorf("%s: %d parameters, %d arguments", name, n, len(x.args))
		}
	}
}

type listQuery struct {
	query string
	args  []any
}

func query(q string, args []any) listQuery { return listQuery{q, args} }

func (q listQuery) want(lines ...string) struct {
	query string
	args  []any
	want  []string
} {
	return struct {
		query string
		args  []any
		want  []string
	}{q.query, q.args, lines}
}

// The retention of commands looks at commands that are due, and finds what was handed over by its command.
func TestRetentionReadsWhatIsDue(t *testing.T) {
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	t.Cleanup(func() { _ = s.Close() })
	for q, want := range map[string]string{
		`SELECT tenant, id FROM commands INDEXED BY commands_settled WHERE settled_at > 0 AND settled_at < ? AND state NOT IN ('queued', 'sent', 'delivered', 'accepted')
			ORDER BY settled_at LIMIT ?`: "SEARCH commands USING INDEX commands_settled (settled_at>? AND settled_at<?)",
		`DELETE FROM handovers WHERE tenant = ? AND command = ?`: "SEARCH handovers USING INDEX sqlite_autoindex_handovers_1 (tenant=? AND command=?)",
	} {
		if got := strings.Join(plan(t, s, q), "; "); got != want {
			t.Errorf("%s\nthe plan is %s, want %s", q, got, want)
		}
	}
}
