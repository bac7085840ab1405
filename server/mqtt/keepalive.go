package mqtt

import (
	"time"

	"github.com/watchword-iot/watchword/mqtt/packet"
)

// effectiveKeepAlive returns the Keep Alive of a CONNECT, bounded by [Options.KeepAlive] for version 5; 0 means none.
func (c *conn) effectiveKeepAlive(p *packet.Connect) time.Duration {
	d := time.Duration(p.KeepAlive) * time.Second
	if limit := c.broker.options.KeepAlive; c.version == packet.V5 && (d == 0 || d > limit) {
		return limit
	}
	return d
}

// startKeepAlive ends the time that the client has for CONNECT. From here on [conn.extendReadDeadline]
// moves the deadline.
func (c *conn) startKeepAlive(p *packet.Connect) {
	c.keepAlive = c.effectiveKeepAlive(p)
	_ = c.nc.SetDeadline(time.Time{}) // an error means that the connection is closed, which the next read reports
	c.deadlineSetAt = time.Time{}
}

// extendReadDeadline moves the read deadline to one and a half Keep Alives from now (MQTT 5.0
// §3.1.2.10). It sets it only if an eighth of one has passed since the last time: the deadline is then at
// least one and a quarter from the last packet.
func (c *conn) extendReadDeadline(now time.Time) {
	if since := now.Sub(c.deadlineSetAt); c.keepAlive == 0 || since >= 0 && since < c.keepAlive/8 {
		return
	}
	c.deadlineSetAt = now
	// Deadlines use the system's clock, whatever clock the broker has.
	_ = c.nc.SetReadDeadline(time.Now().Add(c.keepAlive * 3 / 2)) // an error means that the connection is closed, which the next read reports
}

// handlePingreq answers PINGREQ (MQTT 5.0 §3.12).
func (c *conn) handlePingreq() error {
	c.markReportedByPing()
	c.respond(&packet.Ping{Response: true})
	return nil
}
