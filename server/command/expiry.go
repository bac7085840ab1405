package command

import (
	"context"
	"log/slog"
	"time"

	"github.com/watchword-iot/watchword/internal/clockjump"
	"github.com/watchword-iot/watchword/server/audit"
)

// expireBatch is how many commands end in one transaction.
const expireBatch = 500

// Run ends commands on time until ctx ends.
func (svc *Service) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	jumps := clockjump.Start(svc.opts.Now, svc.wakeExpiryTimer, svc.clockWentBack) // the timer counts monotonic time
	defer jumps.Stop()
	for {
		due := true
		select {
		case <-timer.C:
		case <-svc.clockBack:
		case <-svc.wakeExpiry:
			due = false
		case <-ctx.Done():
			return nil
		}
		if due {
			if err := svc.expireCommands(ctx); err != nil && ctx.Err() == nil {
				slog.ErrorContext(ctx, "commands not expired", slog.Any("err", err))
			}
		}
		next, err := svc.store.NextExpiry(ctx)
		if err != nil {
			next = svc.opts.Now().Add(time.Second) // the store is asked again soon; what has expired is not handed out meanwhile
		}
		svc.mu.Lock()
		svc.nextExpiry = next
		svc.mu.Unlock()
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(max(next.Sub(svc.opts.Now()), time.Millisecond))
		}
	}
}

// expireCommands ends what has expired.
func (svc *Service) expireCommands(ctx context.Context) error {
	for {
		now := svc.opts.Now()
		rows, err := svc.store.ExpireCommands(ctx, now, expireBatch, func(r, _ Row) audit.Entry {
			return audit.Actor{Tenant: r.Tenant}.DoneEntry(audit.CommandExpire, string(r.ID), now, map[string]string{"before": string(r.State), "device": string(r.Device)})
		})
		if err != nil {
			return err
		}
		for _, r := range rows {
			svc.notify(r)
		}
		if len(rows) < expireBatch {
			return nil
		}
	}
}

// scheduleExpiry notifies Run of a new expiry, if it is earlier than the one Run waits for.
func (svc *Service) scheduleExpiry(end time.Time) {
	svc.mu.Lock()
	sooner := svc.nextExpiry.IsZero() || end.Before(svc.nextExpiry)
	if sooner {
		svc.nextExpiry = end
	}
	svc.mu.Unlock()
	if sooner {
		svc.wakeExpiryTimer()
	}
}

// clockWentBack has Run end the commands that were ordered while the clock was ahead: see [Row.Expire].
func (svc *Service) clockWentBack() {
	select {
	case svc.clockBack <- struct{}{}:
	default:
	}
}

// wakeExpiryTimer has Run ask for the next end.
func (svc *Service) wakeExpiryTimer() {
	select {
	case svc.wakeExpiry <- struct{}{}:
	default:
	}
}
