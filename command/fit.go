package command

import (
	"context"
	"fmt"
	"strconv"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
)

// Fit bounds the sealed commands that one connection of a device takes. The zero value
// takes any.
type Fit struct {
	Max    int               // bytes of the largest JWE that the device can hold; 0 for any
	Packet int               // bytes of the largest packet that the connection takes; 0 for any
	Size   func(jwe int) int // bytes of the packet that carries a JWE of so many bytes; needed with Packet
}

// misfit is why a command does not go to a connection.
type misfit struct{ Reason }

func (m *misfit) Error() string { return string(m.Code) + ": " + m.Detail }

// check returns a misfit for a JWE of that many bytes that is too large.
func (f Fit) check(jwe int) error {
	if f.Max > 0 && jwe > f.Max {
		return &misfit{Reason{watchword.TooLarge, fmt.Sprintf("the sealed command has %d bytes, and the device can hold %d", jwe, f.Max), jwe, f.Max}}
	}
	if f.Packet > 0 {
		if size := f.Size(jwe); size > f.Packet {
			return &misfit{PacketTooLarge(size, f.Packet)}
		}
	}
	return nil
}

// PacketTooLarge is the reason of a command whose packet is larger than its client takes.
func PacketTooLarge(size, largest int) Reason {
	return Reason{watchword.TooLarge, fmt.Sprintf("the command's packet has %d bytes, and the client's Maximum Packet Size is %d", size, largest), size, largest}
}

// Fits says what the connection takes, from the next command that is handed over.
func (l *Line) Fits(f Fit) { l.fit = f }

// Undeliverable ends a command that was handed over on this line and not sent after all,
// because the device cannot take it. Where it has ended or was acknowledged meanwhile,
// nothing changes.
func (l *Line) Undeliverable(ctx context.Context, c SealedCommand, why Reason) error {
	return l.desk.undeliverable(ctx, l.key, c.ID, why, Row{State: watchword.Sent, SentAt: c.sent})
}

// undeliverable ends a command; was is how it stood before it was to be handed over.
func (d *Desk) undeliverable(ctx context.Context, of lineKey, id watchword.CommandID, why Reason, was Row) error {
	now := d.o.Now()
	u := Undelivered{Tenant: of.tenant, ID: id, Reason: why, SentAt: was.SentAt, At: now}
	row, changed, err := d.store.Undeliver(ctx, u, func(before, _ Row) audit.Entry {
		return audit.Actor{Tenant: of.tenant}.Did(audit.CommandUndeliver, string(id), now, map[string]string{
			"device": string(of.device), "reason": string(why.Code), "size": strconv.Itoa(why.Size), "max": strconv.Itoa(why.Max), "before": string(before.State),
		})
	})
	if err == nil && changed {
		d.tell(row)
	}
	return err
}
