package mqtt

import (
	"context"
	"slices"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/twin"
)

// retainedPage is how many stored states are read at once.
const retainedPage = 64

// anyDeviceID stands for all devices where filters are compared: no id holds a space.
const anyDeviceID watchword.SubjectID = "any device"

// retainedDelivery is the retained messages and states to be delivered to one new subscription.
type retainedDelivery struct {
	subscription *subscription
	afterTopic   []byte // topic of the last retained message that was examined
	hasMore      bool   // there may be more
	upToNumber   int64  // number of the last message set before the subscription; newer ones are delivered as live messages
	deviceStates bool   // states of all devices
}

// retainedInline is how many retained messages are delivered with SUBACK, and how many records are
// examined at once.
const retainedInline = 32

// deliverRetained delivers to a new subscription: retained messages, last reported states, and the
// configuration if the filter names one device.
func (c *conn) deliverRetained(ctx context.Context, s *subscription) {
	rd := &retainedDelivery{subscription: s, upToNumber: c.session.tenant.bus.Retained.LastNumber()}
	rd.deviceStates = c.broker.deps.Twins != nil && policy.Match(s.Filter, stateTopic(anyDeviceID))
	page, last := c.session.tenant.bus.Retained.Page(s.Filter, "", nil, retainedInline, c.broker.options.Now())
	if last != nil || rd.deviceStates {
		rd.hasMore = true // all of them: nothing found here is held until then
		c.deliverRetainedLater(rd)
	} else {
		for _, x := range page {
			c.deliverRetainedRecord(ctx, rd, x)
		}
	}
	if !rd.deviceStates && c.broker.deps.Twins != nil {
		c.deliverTwin(ctx, s)
	}
}

// deliverRetainedRecord delivers x if its owner may publish it now, unless a newer message replaced
// it, which the subscription receives as a live message.
func (c *conn) deliverRetainedRecord(ctx context.Context, rd *retainedDelivery, x *bus.Retained) {
	m, err := retainedMessage(x)
	if err != nil {
		c.broker.recordRefusal(c, "retained message not given", string(x.Topic()), err)
		return
	}
	var o bus.Result
	var wake *conn
	t := c.session.tenant
	if err := t.bus.Retained.DeliverIfAllowed(ctx, x, &rd.subscription.Subscription, rd.upToNumber, c.broker.ownerAuthority(t.id), func() {
		wake = c.session.deliver(m, &o, nil, &rd.subscription.Subscription)
	}); err != nil {
		c.broker.recordRefusal(c, "retained message not given", m.topic, err)
		return
	}
	c.broker.commitOutcome(&o, nil, nil)
	if wake != nil && wake != c { // the caller flushes c
		wake.flush(false)
	}
}

// deliverTwin delivers state and configuration of one device.
func (c *conn) deliverTwin(ctx context.Context, s *subscription) {
	rest, ok := strings.CutPrefix(s.Filter, devicePrefix)
	if !ok {
		return
	}
	id, _, _ := strings.Cut(rest, "/")
	device := watchword.SubjectID(id)
	wantsState, wantsConfig := policy.Match(s.Filter, stateTopic(device)), policy.Match(s.Filter, configTopic(device))
	if !wantsState && !wantsConfig {
		return
	}
	c.trackLive(s, true)
	defer c.trackLive(s, false)
	lockrank.Block()
	tw, err := c.broker.deps.Twins.Twin(ctx, c.session.tenant.id, device)
	if err != nil {
		if watchword.CodeOf(err) != watchword.NotFound {
			c.broker.recordRefusal(c, "kept message not given", s.Filter, err)
		}
		return
	}
	if wantsState && c.mayDeliverState(ctx, tw) {
		c.deliverOneRetained(s, stateTopic(device), tw.State, "application/json")
	}
	if wantsConfig && tw.ConfigVersion > 0 && c.broker.deps.Commands != nil {
		jws, err := c.broker.deps.Commands.SignConfig(c.session.tenant.id, device, tw.ConfigVersion, tw.Config)
		if err != nil {
			c.broker.recordRefusal(c, "kept message not given", s.Filter, err)
			return
		}
		c.deliverOneRetained(s, configTopic(device), []byte(jws), configContentType)
	}
}

// trackLive starts or ends recording the topics that s receives live while stored messages are
// read, so that no older message is delivered after a newer one.
func (c *conn) trackLive(s *subscription, on bool) {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if s.liveTopics = nil; on {
		s.liveTopics = map[string]struct{}{}
	}
}

// deliverRetainedLater delivers in the background, one subscription of a client at a time, as fast
// as the client reads.
func (c *conn) deliverRetainedLater(rd *retainedDelivery) {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if len(c.retainedDeliveries) > 1 { // a repeated SUBSCRIBE starts no second delivery
		waiting := slices.DeleteFunc(c.retainedDeliveries[1:], func(w *retainedDelivery) bool { return w.subscription.removed || w.subscription == rd.subscription })
		c.retainedDeliveries = c.retainedDeliveries[:1+len(waiting)]
	}
	c.retainedDeliveries = append(c.retainedDeliveries, rd)
	if len(c.retainedDeliveries) == 1 {
		go c.deliverAllRetained(c.broker.ctx)
	}
}

func (c *conn) deliverAllRetained(ctx context.Context) {
	for {
		c.session.mu.Lock()
		rd := c.retainedDeliveries[0]
		c.session.mu.Unlock()
		for rd.hasMore && c.deliverRetainedPage(ctx, rd) {
			c.flush(true)
		}
		c.flush(true)
		for after, more := watchword.SubjectID(""), rd.deviceStates; more; {
			after, more = c.deliverStatePage(ctx, rd.subscription, after)
		}
		c.session.mu.Lock()
		rd.subscription.liveTopics = nil
		c.retainedDeliveries = c.retainedDeliveries[1:]
		done := len(c.retainedDeliveries) == 0
		if done {
			c.retainedDeliveries = nil
		}
		c.session.mu.Unlock()
		if done {
			return
		}
	}
}

// deliverRetainedPage delivers more retained messages, and reports whether to continue.
func (c *conn) deliverRetainedPage(ctx context.Context, rd *retainedDelivery) bool {
	page, last := c.session.tenant.bus.Retained.Page(rd.subscription.Filter, "", rd.afterTopic, 2*retainedInline, c.broker.options.Now())
	for _, x := range page {
		if !c.waitForQueueRoom(rd.subscription) {
			return false
		}
		c.deliverRetainedRecord(ctx, rd, x)
	}
	rd.afterTopic, rd.hasMore = last, last != nil
	return c.waitForQueueRoom(rd.subscription)
}

// deliverStatePage delivers the states after one device, and reports whether there are more and
// after which device.
func (c *conn) deliverStatePage(ctx context.Context, s *subscription, after watchword.SubjectID) (last watchword.SubjectID, more bool) {
	if !c.waitForQueueRoom(s) {
		return after, false
	}
	c.trackLive(s, true)
	lockrank.Block()
	page, err := c.broker.deps.Twins.ReportedStates(ctx, c.session.tenant.id, after, retainedPage)
	if err != nil {
		c.broker.recordRefusal(c, "kept messages not given", s.Filter, err)
		return after, false
	}
	for _, tw := range page {
		topic := stateTopic(tw.Device)
		if !policy.Match(s.Filter, topic) {
			continue
		}
		if !c.waitForQueueRoom(s) {
			return after, false
		}
		if c.mayDeliverState(ctx, tw) {
			c.deliverOneRetained(s, topic, tw.State, "application/json")
		}
	}
	c.flush(true)
	if len(page) < retainedPage {
		return after, false
	}
	return page[len(page)-1].Device, true
}

// mayDeliverState reports whether the reporter of a device's state may publish it now: a state is
// delivered like a retained message.
func (c *conn) mayDeliverState(ctx context.Context, tw twin.Twin) bool {
	if tw.State == nil || tw.ReportedBy == "" {
		return tw.State != nil
	}
	lockrank.Block()
	a, err := c.broker.deps.Guard.OfflineAuthority(ctx, c.session.tenant.id, tw.ReportedBy, tw.ReportedByIncarnation)
	return err == nil && a.Publish(stateTopic(tw.Device)).Allowed
}

// waitForQueueRoom waits until half of the queue is free; the other half is for live messages. It
// returns false if the delivery is no longer wanted.
func (c *conn) waitForQueueRoom(s *subscription) bool {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	for flushed := false; !c.out.closed && c.session.conn == c && !s.removed && c.queueHalfFull(); {
		if flushed {
			c.out.changed.Wait()
			continue
		}
		c.session.mu.Unlock()
		c.flush(true)
		flushed = true
		c.session.mu.Lock()
	}
	return !c.out.closed && c.session.conn == c && !s.removed
}

// queueHalfFull requires mu to be held.
func (c *conn) queueHalfFull() bool {
	n, size := len(c.session.queue)-c.session.head, c.session.queuedBytes
	if per := c.session.persistent; per != nil {
		n, size = max(n, per.backlog.messages), max(size, per.backlog.bytes)
	}
	return n > c.broker.options.QueueMessages/2 || size > c.broker.options.QueueBytes/2
}

// deliverOneRetained delivers a stored message with RETAIN, unless a newer one was received
// meanwhile.
func (c *conn) deliverOneRetained(s *subscription, topic string, payload []byte, contentType string) {
	m := &message{topic: topic, payload: payload, qos: 1, retained: true, props: &packet.Properties{}}
	m.props.SetText(packet.ContentType, contentType)
	var o bus.Result
	c.session.deliver(m, &o, nil, &s.Subscription) // flushed with the batch
	c.broker.commitOutcome(&o, nil, nil)
}
