package mqtt

import (
	"context"
	"slices"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/policy"
)

// keptPage is how many kept states are read at once.
const keptPage = 64

// anyDevice stands for all devices where filters are compared: no id holds a space.
const anyDevice watchword.SubjectID = "any device"

// give hands a new subscription what the server keeps: the states that were
// reported last, and the configuration that is wanted of the one device that the
// filter names.
func (c *conn) give(ctx context.Context, s *subscription) {
	if c.broker.Twins == nil {
		return
	}
	if policy.Match(s.filter, stateTopic(anyDevice)) {
		c.giveAll(s)
		return
	}
	rest, ok := strings.CutPrefix(s.filter, devicePrefix)
	if !ok {
		return
	}
	id, _, _ := strings.Cut(rest, "/")
	device := watchword.SubjectID(id)
	wantsState, wantsConfig := policy.Match(s.filter, stateTopic(device)), policy.Match(s.filter, configTopic(device))
	if !wantsState && !wantsConfig {
		return
	}
	c.expect(s, true)
	defer c.expect(s, false)
	tw, err := c.broker.Twins.Twin(ctx, c.world.tenant, device)
	if err != nil {
		if watchword.CodeOf(err) != watchword.NotFound {
			c.broker.refused(c, "kept message not given", s.filter, err)
		}
		return
	}
	if wantsState && tw.State != nil {
		c.giveOne(s, stateTopic(device), tw.State, "application/json")
	}
	if wantsConfig && tw.ConfigVer > 0 && c.broker.Desk != nil {
		jws, err := c.broker.Desk.SignConfig(device, tw.ConfigVer, tw.Config)
		if err != nil {
			c.broker.refused(c, "kept message not given", s.filter, err)
			return
		}
		c.giveOne(s, configTopic(device), []byte(jws), configType)
	}
}

// expect begins to note what comes for s while something kept is read, or ends it:
// what was kept before must not be said after what came since.
func (c *conn) expect(s *subscription, on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.since = nil; on {
		s.since = map[string]struct{}{}
	}
}

// giveAll gives the states of all devices in the background, one subscription of
// a client after the other, and no faster than the client takes them.
func (c *conn) giveAll(s *subscription) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.givesTo) > 1 { // a client that subscribes again and again is given to once
		waiting := slices.DeleteFunc(c.givesTo[1:], func(s *subscription) bool { return s.dead })
		c.givesTo = c.givesTo[:1+len(waiting)]
	}
	c.givesTo = append(c.givesTo, s)
	if len(c.givesTo) == 1 {
		go c.giveStates(c.broker.ctx)
	}
}

func (c *conn) giveStates(ctx context.Context) {
	for {
		c.mu.Lock()
		s := c.givesTo[0]
		c.mu.Unlock()
		for after, more := watchword.SubjectID(""), true; more; {
			after, more = c.givePage(ctx, s, after)
		}
		c.mu.Lock()
		s.since = nil
		c.givesTo = c.givesTo[1:]
		done := len(c.givesTo) == 0
		if done {
			c.givesTo = nil
		}
		c.mu.Unlock()
		if done {
			return
		}
	}
}

// givePage gives what comes after one device, and reports whether there is more and
// after which.
func (c *conn) givePage(ctx context.Context, s *subscription, after watchword.SubjectID) (last watchword.SubjectID, more bool) {
	if !c.waitForRoom(s) {
		return after, false
	}
	c.expect(s, true)
	page, err := c.broker.Twins.States(ctx, c.world.tenant, after, keptPage)
	if err != nil {
		c.broker.refused(c, "kept messages not given", s.filter, err)
		return after, false
	}
	for _, tw := range page {
		topic := stateTopic(tw.Device)
		if !policy.Match(s.filter, topic) {
			continue
		}
		if !c.waitForRoom(s) {
			return after, false
		}
		c.giveOne(s, topic, tw.State, "application/json")
	}
	c.flush(true)
	if len(page) < keptPage {
		return after, false
	}
	return page[len(page)-1].Device, true
}

// waitForRoom waits until half of the queue is free: the other half is for what
// comes live. It reports false where nobody wants any more.
func (c *conn) waitForRoom(s *subscription) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for flushed := false; !c.closed && !s.dead && (len(c.queue)-c.head > c.broker.o.QueueMessages/2 || c.bytes > c.broker.o.QueueBytes/2); {
		if flushed {
			c.moved.Wait()
			continue
		}
		c.mu.Unlock()
		c.flush(true)
		flushed = true
		c.mu.Lock()
	}
	return !c.closed && !s.dead
}

// giveOne is what another broker does with a retained message, unless a newer one
// came meanwhile.
func (c *conn) giveOne(s *subscription, topic string, payload []byte, contentType string) {
	m := &message{topic: topic, payload: payload, qos: 1, kept: true, props: &packet.Properties{}}
	m.props.SetText(packet.ContentType, contentType)
	c.offer(m, s) // flushed with the batch
}
