package mqtt

import (
	"fmt"
	"strconv"
	"time"

	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/session"
)

// minConnackBytes is the length of a CONNACK with only a reason code, which may be sent before the
// client's Maximum Packet Size is known.
const minConnackBytes = 5

// ReceiveMaximum is the Receive Maximum of the server: unacknowledged publishes of one client.
const ReceiveMaximum = 256

// checkConnackFits refuses a client whose Maximum Packet Size is below the size of its CONNACK.
// Reason: packet too large.
func (c *conn) checkConnackFits(p *packet.Connect, ad *admission) error {
	if c.version != packet.V5 || c.out.maxPacket == 0 {
		return nil
	}
	ack := &packet.Connack{}
	c.addConnackLimits(ack, p, ad)
	if n := len(packet.Append(nil, ack, c.version)); n > c.out.maxPacket {
		return protocolError(packet.PacketTooLarge, packet.CONNECT, fmt.Sprintf("Maximum Packet Size must be at least %d, the size of CONNACK", n))
	}
	return nil
}

// addConnackLimits sets the properties that announce limits and features (MQTT 5.0 §3.2.2.3).
func (c *conn) addConnackLimits(ack *packet.Connack, p *packet.Connect, ad *admission) {
	props := &ack.Properties
	props.SetNumber(packet.ReceiveMaximum, ReceiveMaximum)
	props.SetNumber(packet.MaximumPacketSize, uint32(c.broker.options.PacketBytes))
	props.SetNumber(packet.TopicAliasMaximum, maxAliases)
	if n, ok := p.Properties.Number(packet.SessionExpiryInterval); ok && n != c.sessionExpiry(p) {
		props.SetNumber(packet.SessionExpiryInterval, c.sessionExpiry(p))
	}
	if d := c.effectiveKeepAlive(p); d != time.Duration(p.KeepAlive)*time.Second {
		props.SetNumber(packet.ServerKeepAlive, uint32(d/time.Second))
	}
	if ad.assigned {
		props.SetText(packet.AssignedClientIdentifier, ad.clientID)
	}
	if c.enhancedAuth {
		props.SetText(packet.AuthenticationMethod, authMethodACE)
	}
}

// buildConnack returns the CONNACK of an accepted CONNECT: limits, and to version 5 the session's id, the
// end of the token and what the client lost while it was offline.
func (c *conn) buildConnack(p *packet.Connect, ad *admission, s *session.Session, present bool, lost []string, dropped int64) *packet.Connack {
	ack := &packet.Connack{SessionPresent: present}
	if c.version != packet.V5 {
		return ack
	}
	c.addConnackLimits(ack, p, ad)
	props := &ack.Properties
	props.User = []packet.UserProp{{Name: "session", Value: string(s.ID())}, {Name: "expires_at", Value: s.Authority().Expires().UTC().Format(time.RFC3339)}}
	for _, f := range lost[:min(len(lost), maxReportedLost)] { // the client must know which subscriptions were removed
		props.User = append(props.User, packet.UserProp{Name: "lost", Value: f})
	}
	if dropped > 0 {
		props.User = append(props.User, packet.UserProp{Name: "dropped", Value: strconv.FormatInt(dropped, 10)})
	}
	return ack
}

// sendConnack answers CONNECT once at is written; nil: at once. No other packet is sent before it.
func (c *conn) sendConnack(at *commit, ack *packet.Connack) {
	c.respondAfter(at, ack)
	if c.version == packet.V5 && ack.Properties.User == nil {
		c.withdrawConnackReport() // the client's maximum packet size left no room for the losses
	}
}

// maxReportedLost limits how many lost subscriptions CONNACK names.
const maxReportedLost = 32

// connackHasRoomFor reports whether CONNACK has room for the names of the lost subscriptions.
func (c *conn) connackHasRoomFor(lost []string) bool {
	const rest, each = 512, len("lost") + 5
	size := rest
	for _, f := range lost {
		size += each + len(f)
	}
	return len(lost) <= maxReportedLost && (c.out.maxPacket == 0 || size <= c.out.maxPacket)
}

// rejectConnect answers a refused CONNECT and ends the connection.
func (c *conn) rejectConnect(err error) error {
	c.releaseReservation()
	ack := &packet.Connack{Code: reasonCodeOf(err)}
	switch {
	case c.version == packet.V5:
		if !packet.MayCarry(packet.CONNACK, ack.Code) {
			ack.Code = packet.UnspecifiedError
		}
		ack.Properties.SetText(packet.ReasonString, publicText(err))
		ack.Properties.User = []packet.UserProp{{Name: "trace_id", Value: c.trace}}
	default: // also for an unsupported protocol version
		c.version = packet.V311
		ack.Code = connectReturnCode(ack.Code)
	}
	c.respond(ack)
	c.broker.stats.refusedConnects.Add(1)
	c.close(err)
	return nil
}

// connectReturnCode returns the return code of a refused 3.1.1 CONNECT (§3.2.2.3).
func connectReturnCode(r packet.Reason) packet.Reason {
	switch r {
	case packet.UnsupportedProtocolVersion:
		return 1
	case packet.ClientIdentifierNotValid:
		return 2
	case packet.ServerUnavailable, packet.ServerBusy, packet.QuotaExceeded, packet.ConnectionRateExceeded, packet.UnspecifiedError:
		return 3
	case packet.BadUserNameOrPassword:
		return 4
	}
	return 5
}
