package storetest

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/command"
)

// The methods of this file are those of the store that take an actor and a function that makes the entry, for contracts that
// look at neither: the entry is finished, and says who acts on what basis.

func actor(e audit.Entry) audit.Actor {
	return audit.Actor{Tenant: e.Tenant, Subject: e.Actor, Key: e.Key, Basis: e.Basis}
}

// AddCommand is [Store.AddCommand].
func (t *T) AddCommand(ctx context.Context, r command.Row, idem command.Idempotency, b command.Bounds, e audit.Entry) (command.Row, bool, error) {
	return t.Store.AddCommand(ctx, actor(e), r, idem, b, audit.Always[command.Row](e))
}

// HandOver is [Store.HandOver].
func (t *T) HandOver(ctx context.Context, tenant watchword.TenantID, id watchword.CommandID, h command.Handover, e audit.Entry) (command.Row, int64, error) {
	return t.Store.HandOver(ctx, tenant, id, h, audit.Always[command.Row](e))
}

// Undeliver is [Store.Undeliver].
func (t *T) Undeliver(ctx context.Context, u command.Undelivered, e audit.Entry) (command.Row, bool, error) {
	return t.Store.Undeliver(ctx, u, audit.Always[command.Row](e))
}

// Settle is [Store.Settle].
func (t *T) Settle(ctx context.Context, s command.Settlement, e audit.Entry) (command.Row, bool, error) {
	return t.Store.Settle(ctx, actor(e), s, audit.Always[command.Row](e))
}

// CancelCommand is [Store.CancelCommand].
func (t *T) CancelCommand(ctx context.Context, tenant watchword.TenantID, id watchword.CommandID, now time.Time, e audit.Entry) (command.Row, error) {
	by := actor(e)
	by.Tenant = tenant
	return t.Store.CancelCommand(ctx, by, id, now, audit.Always[command.Row](e))
}
