package storetest

import (
	"fmt"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/enroll"
)

// ownerRecovered: a recovery adds an owner or gives one that exists a code, is told until it expires or is acknowledged, and changes
// nothing where it is refused.
func ownerRecovered(t *T) {
	recover := func(id watchword.SubjectID, code string) (watchword.Subject, error) {
		r := enroll.Recovery{
			Owner:  watchword.Subject{Tenant: tenant, ID: id, Kind: watchword.Operator, Role: watchword.OwnerRole, State: watchword.New, Created: t.now, Changed: t.now},
			Code:   t.code(id, code),
			Notice: watchword.Notice{Tenant: tenant, Kind: watchword.NoticeRecovery, Object: id, At: t.now, Expires: t.now.Add(time.Hour)},
		}
		return t.Recover(t.ctx, audit.Actor{Tenant: tenant}, r, func(created bool) []audit.Entry {
			es := []audit.Entry{t.entry(audit.OperatorRecover, string(id))}
			if created {
				es = append(es, t.entry(audit.KindFor(watchword.Operator, audit.DeviceCreate), string(id)))
			}
			return es
		})
	}
	told := func(tenant watchword.TenantID, now time.Time) (ids string) {
		t.Helper()
		all, err := t.Notices(t.ctx, tenant, now)
		t.must(err)
		for _, n := range all {
			equal(t, "kind", n.Kind, watchword.NoticeRecovery)
			equal(t, "at", n.At.Equal(t.now), true)
			equal(t, "expires", n.Expires.Equal(t.now.Add(time.Hour)), true)
			ids += string(n.Object) + " "
		}
		return ids
	}
	t.enrolled("lamp-1")
	t.operator("vera", "viewer")
	t.operator("sam", watchword.OwnerRole)
	t.operator("alice", watchword.OwnerRole)
	_, err := t.Suspend(t.ctx, tenant, "sam", t.now, t.entry(audit.KindFor(watchword.Operator, audit.DeviceSuspend), "sam"))
	t.must(err)
	t.operator("old", watchword.OwnerRole)
	t.must(t.DeleteSubject(t.ctx, tenant, "old", t.now, t.entry(audit.KindFor(watchword.Operator, audit.DeviceDelete), "old")))
	n := t.log()
	for _, id := range []watchword.SubjectID{"lamp-1", "vera", "sam", "old"} {
		_, err := recover(id, "code of "+string(id))
		t.wantCode(watchword.Conflict, err)
	}
	equal(t, "entries of what was refused", t.log(), n)
	equal(t, "told of what was refused", told(tenant, t.now), "")

	s, err := recover("carla", "code of carla")
	t.must(err)
	equal(t, "state of a new owner", s.State, watchword.New)
	equal(t, "entries", t.log(), n+2)
	s, _, err = t.RedeemCode(t.ctx, t.signing("carla"), t.now, t.entry(operatorEnroll, "carla"))
	t.must(err)
	equal(t, "the new owner", s.IsOwner() && s.HasPermanentKey(), true)
	n = t.log()
	s, err = recover("alice", "code of desktop")
	t.must(err)
	equal(t, "entries", t.log(), n+1)
	equal(t, "keys before", s.SignKeys(t.now), 1)
	s, _, err = t.RedeemCode(t.ctx, t.signing("desktop"), t.now, t.entry(operatorEnroll, "alice"))
	t.must(err)
	equal(t, "keys after", s.SignKeys(t.now), 2)

	equal(t, "told", told(tenant, t.now), "alice carla ") // one for each object
	equal(t, "told in another tenant", told(otherTenant, t.now), "")
	equal(t, "told a millisecond before the end", told(tenant, t.now.Add(time.Hour-time.Millisecond)), "alice carla ")
	equal(t, "told at the end", told(tenant, t.now.Add(time.Hour)), "")
	e := t.entry(audit.NoticeAcknowledge, string(watchword.NoticeRecovery))
	acknowledge := func(by watchword.SubjectID, key watchword.KeyID, tenant watchword.TenantID, kind watchword.NoticeKind, object watchword.SubjectID, at time.Time) error {
		return t.AcknowledgeNotice(t.ctx, audit.Actor{Tenant: tenant, Subject: by, Key: key}, kind, object, at, t.now.Add(time.Minute), e)
	}
	const kind = watchword.NoticeRecovery
	notice := t.now
	t.now = notice.Add(-time.Millisecond)
	t.operator("earlier", watchword.OwnerRole)
	t.now = notice
	t.operator("later", watchword.OwnerRole)
	n = t.log()
	t.wantCode(watchword.NotFound, acknowledge("earlier", "earlier-sign", otherTenant, kind, "alice", notice))
	t.wantCode(watchword.NotFound, acknowledge("earlier", "earlier-sign", tenant, "another", "alice", notice))
	t.wantCode(watchword.NotFound, acknowledge("earlier", "earlier-sign", tenant, kind, "nobody", notice))
	t.wantCode(watchword.Conflict, acknowledge("earlier", "earlier-sign", tenant, kind, "alice", notice.Add(-time.Second)))
	t.wantCode(watchword.Denied, acknowledge("alice", "alice-sign", tenant, kind, "alice", notice))
	t.wantCode(watchword.Denied, acknowledge("later", "later-sign", tenant, kind, "alice", notice))
	t.wantCode(watchword.Denied, acknowledge("earlier", "later-sign", tenant, kind, "alice", notice))
	equal(t, "told after what was refused", told(tenant, t.now), "alice carla ")
	t.must(acknowledge("earlier", "earlier-sign", tenant, kind, "alice", notice.Add(time.Millisecond))) // of the same second
	equal(t, "told after it was acknowledged", told(tenant, t.now), "carla ")                           // the other one stays
	t.wantCode(watchword.NotFound, acknowledge("earlier", "earlier-sign", tenant, kind, "alice", notice))
	equal(t, "entries", t.log(), n+1)

	// The newest of a kind stay, and each tenant has its own.
	for i := range watchword.MaxNotices + 1 {
		_, err := recover(watchword.SubjectID(fmt.Sprintf("owner-%02d", i)), fmt.Sprint("code ", i))
		t.must(err)
		t.now = t.now.Add(time.Millisecond)
	}
	all, err := t.Notices(t.ctx, tenant, t.now)
	t.must(err)
	equal(t, "notices", len(all), watchword.MaxNotices)
	equal(t, "the oldest", all[0].Object, "owner-01")
	equal(t, "the newest", all[len(all)-1].Object, "owner-16")
}
