package mqtt

import (
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// resolveTopicAlias puts the topic in the place of its alias, and refuses properties that are not
// a client's.
func (c *conn) resolveTopicAlias(p *packet.Publish) error {
	if len(p.Properties.Subscriptions) > 0 {
		return protocolError(packet.ProtocolError, packet.PUBLISH, "a subscription identifier from a client")
	}
	n, aliased := p.Properties.Number(packet.TopicAlias)
	switch {
	case !aliased:
		return nil
	case n > maxAliases:
		return protocolError(packet.TopicAliasInvalid, packet.PUBLISH, "a topic alias above the maximum")
	case p.Topic != "":
		return c.setInboundAlias(int(n), p.Topic)
	case int(n) > len(c.inboundAliases) || c.inboundAliases[n-1] == "":
		return protocolError(packet.ProtocolError, packet.PUBLISH, "a topic alias that stands for nothing yet")
	default:
		p.Topic = c.inboundAliases[n-1]
	}
	return nil
}

// setInboundAlias has an alias stand for a topic from now on (MQTT 5.0 §3.3.2.3.4). Code: busy: the
// client may use any alias up to the maximum, so that the connection ends where there is no room.
func (c *conn) setInboundAlias(alias int, topic string) error {
	if len(c.inboundAliases) >= alias && c.inboundAliases[alias-1] == topic {
		return nil
	}
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	received := c.inboundAliases
	if len(received) < alias {
		received = make([]string, alias)
		copy(received, c.inboundAliases)
	}
	if err := c.chargeAliases((len(received)-len(c.inboundAliases))*inboundAliasBytes + allocatedSize(topic) - allocatedSize(received[alias-1])); err != nil {
		return err
	}
	received[alias-1] = topic
	c.inboundAliases = received
	return nil
}

// assignAlias returns the alias of a topic for this client, 0 for none; known, if the client
// has heard it. Where its subject has no room for another, topics go as they are.
func (c *conn) assignAlias(topic string) (alias uint16, known bool) {
	if alias, known = c.lookUpAlias(topic); alias > 0 && !known {
		if c.chargeAliases(outboundAliasBytes+allocatedSize(topic)) != nil {
			c.out.maxOutboundAliases = len(c.out.outboundAliases)
			return 0, false
		}
		if c.out.outboundAliases == nil {
			c.out.outboundAliases = map[string]uint16{}
		}
		c.out.outboundAliases[topic] = alias
	}
	return alias, known
}

// lookUpAlias returns the alias that a topic has or would get, as [conn.assignAlias] does.
func (c *conn) lookUpAlias(topic string) (alias uint16, known bool) {
	if c.out.maxOutboundAliases == 0 {
		return 0, false
	}
	if alias, known = c.out.outboundAliases[topic]; known || len(c.out.outboundAliases) >= c.out.maxOutboundAliases {
		return alias, known
	}
	return uint16(len(c.out.outboundAliases) + 1), false
}

// chargeAliases counts n bytes more of aliases, or less. mu is held.
func (c *conn) chargeAliases(n int) error {
	err := c.out.aliasCharged.resize(c.broker.connectionQuota, c.session.account(), c.out.aliasBytes+n, true)
	if err == nil {
		c.out.aliasBytes += n
	}
	return err
}

// forgetAliases is the reader's last word on them: nobody sends on the connection any more.
func (c *conn) forgetAliases() {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	c.inboundAliases, c.out.outboundAliases, c.out.maxOutboundAliases = nil, nil, 0
	if c.out.aliasBytes > 0 { // else it may never have come to CONNECT
		_ = c.chargeAliases(-c.out.aliasBytes) // never refused: it shrinks
	}
}
