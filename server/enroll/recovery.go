package enroll

import (
	"context"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/session"
)

// How long the link of a recovery is valid, and how long operators are told of it.
const (
	RecoveryLinkLifetime   = 10 * time.Minute
	RecoveryNoticeLifetime = 7 * 24 * time.Hour
)

// Recovery makes an owner where none has a key any more: a new one, or one that exists.
type Recovery struct {
	Owner  watchword.Subject // as it is added where there is no subject of its id
	Code   Code
	Notice watchword.Notice
}

// Check refuses a recovery of a subject that exists and is no owner, or may have no link. Code: conflict.
func (r Recovery) Check(s *watchword.Subject) error {
	if !s.IsOwner() {
		return watchword.Refuse(watchword.Conflict, "id must be that of an owner, or one that was never used: %q is another subject", s.ID)
	}
	if err := MayHaveLink(s, r.Code, r.Notice.At); err != nil { // no owner can act who would resume it or revoke one of its keys
		reason := "it is " + string(s.State)
		switch {
		case watchword.CodeOf(err) == watchword.RateLimited:
			reason = "it got as many keys within 24 hours as it may get"
		case s.State == watchword.Active:
			reason = "it has as many keys as it may have"
		}
		return watchword.Wrap(err, watchword.Conflict, "the owner %q can get no link, since %s: choose another NAME, which becomes an owner", s.ID, reason)
	}
	return nil
}

// Recover makes a link of ten minutes for an owner: a new operator of that id, or an owner that exists, who gets a further key or
// enrolls again. It is an act of a process with access to the data folder; through says how it reached the store. Every operator is
// told of it for a week. Codes: bad_request; conflict for an id of another subject, and for a suspended owner.
func (svc *Service) Recover(ctx context.Context, by session.Actor, id watchword.SubjectID, through string, now time.Time) (watchword.Subject, Link, error) {
	if err := watchword.CheckSubjectID(string(id)); err != nil {
		return watchword.Subject{}, Link{}, err
	}
	code, link, err := svc.newCode(by, id, Lifetimes{Link: RecoveryLinkLifetime}, now)
	if err != nil {
		return watchword.Subject{}, Link{}, err
	}
	r := Recovery{
		Owner: watchword.Subject{
			Tenant: by.Tenant, ID: id, Kind: watchword.Operator, Role: watchword.OwnerRole, State: watchword.New, Version: 1, Incarnation: 1, Created: now, Changed: now,
		},
		Code:   code,
		Notice: recoveryNotice(by.Tenant, id, now),
	}
	s, err := svc.store.Recover(ctx, by.Actor, r, func(created bool) (es []audit.Entry) {
		if created {
			es = append(es, by.DoneEntry(audit.KindFor(watchword.Operator, audit.DeviceCreate), string(id), now, map[string]string{"labels": "", "role": watchword.OwnerRole}))
		}
		return append(es, by.DoneEntry(audit.OperatorRecover, string(id), now, map[string]string{"through": through, "expires": link.Expires.UTC().Format(time.RFC3339)}))
	})
	if err != nil {
		return s, Link{}, err
	}
	return s, link, svc.opts.Live.Apply(ctx, watchword.SubjectChange(&s))
}

func recoveryNotice(t watchword.TenantID, owner watchword.SubjectID, at time.Time) watchword.Notice {
	return watchword.Notice{Tenant: t, Kind: watchword.NoticeRecovery, Object: owner, At: at, Expires: at.Add(RecoveryNoticeLifetime)}
}

// NoticesAfter returns the notices that an act left where there were these before: that of a recovery is added, and one that was
// acknowledged is removed.
func NoticesAfter(before []watchword.Notice, e audit.Entry) []watchword.Notice {
	if e.Outcome != audit.Done {
		return before
	}
	switch e.Kind {
	case audit.OperatorRecover:
		return append(before, recoveryNotice(e.Tenant, watchword.SubjectID(e.Object), e.At))
	case audit.NoticeAcknowledge:
		return slices.DeleteFunc(before, func(n watchword.Notice) bool {
			return n.Tenant == e.Tenant && string(n.Kind) == e.Object && string(n.Object) == e.Data["object"]
		})
	}
	return before
}
