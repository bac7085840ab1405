package mqtt

import (
	"errors"
	"log/slog"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/truncate"
	"github.com/watchword-iot/watchword/server/audit"
)

// recordRefusal counts, logs and audits a refusal.
func (b *Broker) recordRefusal(c *conn, what, object string, err error) {
	b.stats.countRefusal(err)
	code := errorCodeOf(err)
	level := slog.LevelInfo
	switch {
	case code == "" || err == errTakenOver:
		level = slog.LevelDebug
	case code == watchword.Internal:
		level = slog.LevelError
	}
	var owner audit.Actor
	attrs := []slog.Attr{slog.String("code", string(code)), slog.String("client", c.session.id), slog.String("remote", c.remote)}
	if s := c.live(); s != nil {
		a := s.Authority()
		owner = audit.Actor{Tenant: a.Tenant(), Subject: a.Subject(), Key: a.Key(), Trace: string(s.ID())}
		attrs = append(attrs, slog.String("subject", string(a.Subject())), slog.String("trace_id", string(s.ID())))
	} else {
		owner = audit.Actor{Tenant: c.tenantOfRefusal(), Trace: c.trace}
		attrs = append(attrs, slog.String("trace_id", c.trace))
	}
	if object != "" {
		attrs = append(attrs, slog.String("topic", object))
	}
	rule := ""
	if e, ok := errors.AsType[*watchword.Error](err); ok && e.Rule != "" {
		rule = e.Rule
		attrs = append(attrs, slog.String("rule", rule))
	}
	b.options.Log.LogAttrs(b.ctx, level, what, append(attrs, slog.Any("err", err))...)
	if b.deps.Recorder != nil && code != "" && owner.Tenant != "" {
		if object == "" {
			object = c.session.id
		}
		e := owner.RefusedEntry(audit.RequestRefuse, what+" "+truncate.LogText(object), b.options.Now(), err, map[string]string{"remote": c.remote, "rule": rule})
		e.Code = code // also of a protocol error
		b.deps.Recorder.Refused(e)
	}
}
