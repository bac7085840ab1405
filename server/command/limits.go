package command

import (
	"context"
	"fmt"
	"strconv"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
)

// Limits bounds the sealed commands that one connection of a device takes. The zero value
// takes any.
type Limits struct {
	MaxJWE     int               // bytes of the largest JWE that the device can hold; 0 for any
	MaxPacket  int               // bytes of the largest packet that the connection takes; 0 for any
	PacketSize func(jwe int) int // bytes of the packet that carries a JWE of so many bytes; needed with Packet
}

// tooLargeError is why a command does not go to a connection.
type tooLargeError struct{ Reason }

func (m *tooLargeError) Error() string { return string(m.Code) + ": " + m.Detail }

// check returns a [tooLargeError] for a JWE of that many bytes that is too large.
func (f Limits) check(jwe int) error {
	if f.MaxJWE > 0 && jwe > f.MaxJWE {
		return &tooLargeError{Reason{watchword.TooLarge, fmt.Sprintf("the sealed command has %d bytes, and the device can hold %d", jwe, f.MaxJWE), jwe, f.MaxJWE}}
	}
	if f.MaxPacket > 0 {
		if size := f.PacketSize(jwe); size > f.MaxPacket {
			return &tooLargeError{PacketTooLarge(size, f.MaxPacket)}
		}
	}
	return nil
}

// PacketTooLarge is the reason of a command whose packet is larger than its client takes.
func PacketTooLarge(size, largest int) Reason {
	return Reason{watchword.TooLarge, fmt.Sprintf("the command's packet has %d bytes, and the client's Maximum Packet Size is %d", size, largest), size, largest}
}

// SetLimits says what the connection takes, from the next command that is handed over.
func (dl *Delivery) SetLimits(f Limits) { dl.limits = f }

// MarkUndeliverable ends a command that was handed over by this delivery and not sent after all,
// because the device cannot take it. Where it has ended or was acknowledged meanwhile,
// nothing changes.
func (dl *Delivery) MarkUndeliverable(ctx context.Context, c SealedCommand, why Reason) error {
	return dl.svc.markUndeliverable(ctx, dl.key, c.ID, why, Row{State: watchword.Sent, SentAt: c.sent})
}

// markUndeliverable ends a command; was is how it stood before it was to be handed over.
func (svc *Service) markUndeliverable(ctx context.Context, of deviceRef, id watchword.CommandID, why Reason, was Row) error {
	now := svc.opts.Now()
	u := UndeliverableUpdate{Tenant: of.tenant, ID: id, Reason: why, SentAt: was.SentAt, At: now}
	row, changed, err := svc.store.MarkUndeliverable(ctx, u, func(before, _ Row) audit.Entry {
		return audit.Actor{Tenant: of.tenant}.DoneEntry(audit.CommandUndeliver, string(id), now, map[string]string{
			"device": string(of.device), "reason": string(why.Code), "size": strconv.Itoa(why.Size), "max": strconv.Itoa(why.Max), "before": string(before.State),
		})
	})
	if err == nil && changed {
		svc.notify(row)
	}
	return err
}
