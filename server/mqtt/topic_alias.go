package mqtt

import (
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// resolveTopicAlias replaces a topic alias by its topic, and refuses properties that clients must
// not send.
func (c *conn) resolveTopicAlias(p *packet.Publish) error {
	if len(p.Properties.Subscriptions) > 0 {
		return protocolError(packet.ProtocolError, packet.PUBLISH, "PUBLISH of a client must not have a Subscription Identifier")
	}
	n, aliased := p.Properties.Number(packet.TopicAlias)
	switch {
	case !aliased:
		return nil
	case n > maxAliases:
		return protocolError(packet.TopicAliasInvalid, packet.PUBLISH, "Topic Alias must be from 1 to the server's Topic Alias Maximum")
	case p.Topic != "":
		return c.setInboundAlias(int(n), p.Topic)
	case int(n) > len(c.inboundAliases) || c.inboundAliases[n-1] == "":
		return protocolError(packet.ProtocolError, packet.PUBLISH, "Topic Alias must have been set before, with a topic name")
	default:
		p.Topic = c.inboundAliases[n-1]
	}
	return nil
}

// setInboundAlias sets a topic alias (MQTT 5.0 §3.3.2.3.4). Code: busy; then the connection ends,
// since the client may use any alias up to the maximum.
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

// assignAlias returns the topic alias for this client, 0 for none; known reports whether the client
// has it already. Without quota topics are sent in full.
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

// lookUpAlias returns what [conn.assignAlias] would return, without assigning.
func (c *conn) lookUpAlias(topic string) (alias uint16, known bool) {
	if c.out.maxOutboundAliases == 0 {
		return 0, false
	}
	if alias, known = c.out.outboundAliases[topic]; known || len(c.out.outboundAliases) >= c.out.maxOutboundAliases {
		return alias, known
	}
	return uint16(len(c.out.outboundAliases) + 1), false
}

// chargeAliases changes the charge for aliases by n bytes. mu is held.
func (c *conn) chargeAliases(n int) error {
	err := c.out.aliasCharged.resize(c.broker.connectionQuota, c.session.account(), c.out.aliasBytes+n, true)
	if err == nil {
		c.out.aliasBytes += n
	}
	return err
}

// forgetAliases is called by the reader at the end, when nothing is sent any more.
func (c *conn) forgetAliases() {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	c.inboundAliases, c.out.outboundAliases, c.out.maxOutboundAliases = nil, nil, 0
	if c.out.aliasBytes > 0 { // otherwise CONNECT was never accepted
		_ = c.chargeAliases(-c.out.aliasBytes) // never refused, since it shrinks
	}
}
