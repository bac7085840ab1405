package storetest

import (
	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/command"
)

func tenantIsolation(t *T) {
	t.enrolled("lamp-1")
	e := t.entry(audit.DeviceCreate, "x")
	t.order(1, "lamp-1")
	t.must(t.IssueToken(t.ctx, t.record("tok_1", "lamp-1"), t.spend("a"), e))
	_, _, err := t.PutPolicy(t.ctx, tenant, "p", []byte("x"), -1, t.now, e)
	t.must(err)

	twinOf := watchword.Subject{Tenant: otherTenant, ID: "lamp-1", Kind: watchword.Device, State: watchword.New, Created: t.now, Changed: t.now}
	_, err = t.Subject(t.ctx, otherTenant, "lamp-1")
	t.wantCode(watchword.NotFound, err)
	_, err = t.Revoke(t.ctx, otherTenant, "lamp-1", t.now, e)
	t.wantCode(watchword.NotFound, err)
	_, err = t.Command(t.ctx, otherTenant, commandID(1))
	t.wantCode(watchword.NotFound, err)
	_, err = t.CancelCommand(t.ctx, otherTenant, commandID(1), t.now, e)
	t.wantCode(watchword.NotFound, err)
	_, err = t.TokenRecord(t.ctx, otherTenant, "tok_1")
	t.wantCode(watchword.NotFound, err)
	_, err = t.Twin(t.ctx, otherTenant, "lamp-1")
	t.wantCode(watchword.NotFound, err)
	_, err = t.DeletePolicy(t.ctx, otherTenant, "p", -1, t.now, e)
	t.wantCode(watchword.NotFound, err)
	r := t.redemption("code of lamp-1", "x")
	r.Tenant = otherTenant
	_, _, err = t.RedeemCode(t.ctx, r, t.now, e)
	t.wantCode(watchword.CodeInvalid, err)
	t.must(t.CreateSubject(t.ctx, twinOf, nil, e)) // the same id in another tenant is another subject
	ss, err := t.Subjects(t.ctx, otherTenant, "", "", nil, "", 10)
	t.must(err)
	equal(t, "subjects over there", len(ss), 1)
	rows, err := t.Commands(t.ctx, otherTenant, command.Filter{}, "", 10)
	t.must(err)
	equal(t, "commands over there", len(rows), 0)
	ps, err := t.Policies(t.ctx, otherTenant)
	t.must(err)
	equal(t, "policies over there", len(ps), 0)
}
