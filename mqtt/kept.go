package mqtt

import (
	"context"
	"slices"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/bus"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/policy"
	"github.com/watchword-iot/watchword/twin"
)

// keptPage is how many kept states are read at once.
const keptPage = 64

// anyDevice stands for all devices where filters are compared: no id holds a space.
const anyDevice watchword.SubjectID = "any device"

// giving is what one subscription is to be given of what the server keeps.
type giving struct {
	to     *subscription
	after  []byte // the topic of the retained message that was looked at last
	rest   bool   // there may be more of them
	latest int64  // the number of the last one that was set when it subscribed: what is newer comes by itself
	states bool   // those of all devices
}

// givenAtOnce is how many retained messages a subscription gets without waiting, and how
// many are looked for at once.
const givenAtOnce = 32

// give hands a new subscription what the server keeps: retained messages, the states
// that were reported last, and the configuration that is wanted of the one device that
// the filter names.
func (c *conn) give(ctx context.Context, s *subscription) {
	g := &giving{to: s, latest: c.session.world.retained.latest()}
	g.states = c.broker.deps.Twins != nil && policy.Match(s.Filter, stateTopic(anyDevice))
	page, last := c.session.world.retained.page(s.Filter, "", nil, givenAtOnce, c.broker.options.Now())
	if last != nil || g.states {
		g.rest = true // all of them: what was found here is not held until its turn comes
		c.giveSoon(g)
	} else {
		for _, x := range page {
			c.giveRetained(ctx, g, x)
		}
	}
	if !g.states && c.broker.deps.Twins != nil {
		c.giveTwin(ctx, s)
	}
}

// giveRetained gives x, if its owner may publish it at this moment, and unless another
// took its place: that came by the subscription itself, or is about to.
func (c *conn) giveRetained(ctx context.Context, g *giving, x *record) {
	m, err := x.message()
	if err != nil {
		c.broker.refused(c, "retained message not given", string(x.topic()), err)
		return
	}
	r := &c.session.world.retained
	var o bus.Result
	var wake *conn
	for {
		r.mu.RLock()
		owner := x.owner
		may, known := owner.mayBeGiven(m.topic)
		if x.gone || x.number > g.latest {
			may, known = false, true
		}
		if may {
			wake = c.session.offer(m, &o, nil, &g.to.Subscription)
		}
		r.mu.RUnlock()
		if known {
			break
		}
		if err := c.broker.decide(ctx, c.session.world, owner); err != nil {
			c.broker.refused(c, "retained message not given", m.topic, err)
			return
		}
	}
	c.broker.settle(&o, nil, nil)
	if wake != nil && wake != c { // who gives flushes c when it is done
		wake.flush(false)
	}
}

// giveTwin gives state and configuration of one device.
func (c *conn) giveTwin(ctx context.Context, s *subscription) {
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
	c.expect(s, true)
	defer c.expect(s, false)
	lockrank.Block()
	tw, err := c.broker.deps.Twins.Twin(ctx, c.session.world.tenant, device)
	if err != nil {
		if watchword.CodeOf(err) != watchword.NotFound {
			c.broker.refused(c, "kept message not given", s.Filter, err)
		}
		return
	}
	if wantsState && c.stateMayBeGiven(ctx, tw) {
		c.giveOne(s, stateTopic(device), tw.State, "application/json")
	}
	if wantsConfig && tw.ConfigVer > 0 && c.broker.deps.Desk != nil {
		jws, err := c.broker.deps.Desk.SignConfig(device, tw.ConfigVer, tw.Config)
		if err != nil {
			c.broker.refused(c, "kept message not given", s.Filter, err)
			return
		}
		c.giveOne(s, configTopic(device), []byte(jws), configType)
	}
}

// expect begins to note what comes for s while something kept is read, or ends it:
// what was kept before must not be said after what came since.
func (c *conn) expect(s *subscription, on bool) {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if s.since = nil; on {
		s.since = map[string]struct{}{}
	}
}

// giveSoon gives in the background, one subscription of a client after the other, and
// no faster than the client takes it.
func (c *conn) giveSoon(g *giving) {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if len(c.givesTo) > 1 { // a client that subscribes again and again is given to once
		waiting := slices.DeleteFunc(c.givesTo[1:], func(w *giving) bool { return w.to.dead || w.to == g.to })
		c.givesTo = c.givesTo[:1+len(waiting)]
	}
	c.givesTo = append(c.givesTo, g)
	if len(c.givesTo) == 1 {
		go c.giveAll(c.broker.ctx)
	}
}

func (c *conn) giveAll(ctx context.Context) {
	for {
		c.session.mu.Lock()
		g := c.givesTo[0]
		c.session.mu.Unlock()
		for g.rest && c.givePageOfRetained(ctx, g) {
			c.flush(true)
		}
		c.flush(true)
		for after, more := watchword.SubjectID(""), g.states; more; {
			after, more = c.givePage(ctx, g.to, after)
		}
		c.session.mu.Lock()
		g.to.since = nil
		c.givesTo = c.givesTo[1:]
		done := len(c.givesTo) == 0
		if done {
			c.givesTo = nil
		}
		c.session.mu.Unlock()
		if done {
			return
		}
	}
}

// givePageOfRetained gives some more retained messages, and reports whether the
// subscription goes on.
func (c *conn) givePageOfRetained(ctx context.Context, g *giving) bool {
	page, last := c.session.world.retained.page(g.to.Filter, "", g.after, 2*givenAtOnce, c.broker.options.Now())
	for _, x := range page {
		if !c.waitForRoom(g.to) {
			return false
		}
		c.giveRetained(ctx, g, x)
	}
	g.after, g.rest = last, last != nil
	return c.waitForRoom(g.to)
}

// givePage gives what comes after one device, and reports whether there is more and
// after which.
func (c *conn) givePage(ctx context.Context, s *subscription, after watchword.SubjectID) (last watchword.SubjectID, more bool) {
	if !c.waitForRoom(s) {
		return after, false
	}
	c.expect(s, true)
	lockrank.Block()
	page, err := c.broker.deps.Twins.States(ctx, c.session.world.tenant, after, keptPage)
	if err != nil {
		c.broker.refused(c, "kept messages not given", s.Filter, err)
		return after, false
	}
	for _, tw := range page {
		topic := stateTopic(tw.Device)
		if !policy.Match(s.Filter, topic) {
			continue
		}
		if !c.waitForRoom(s) {
			return after, false
		}
		if c.stateMayBeGiven(ctx, tw) {
			c.giveOne(s, topic, tw.State, "application/json")
		}
	}
	c.flush(true)
	if len(page) < keptPage {
		return after, false
	}
	return page[len(page)-1].Device, true
}

// stateMayBeGiven reports whether whoever reported a device's state may publish it today: it
// is kept as a retained message is (see giveRetained), and given as one.
func (c *conn) stateMayBeGiven(ctx context.Context, tw twin.Twin) bool {
	if tw.State == nil || tw.StateBy == "" {
		return tw.State != nil
	}
	lockrank.Block()
	a, err := c.broker.deps.Guard.Absent(ctx, c.session.world.tenant, tw.StateBy, tw.StateByIncarnation)
	return err == nil && a.Publish(stateTopic(tw.Device)).Allowed
}

// waitForRoom waits until half of the queue is free: the other half is for what
// comes live. It reports false where nobody wants any more.
func (c *conn) waitForRoom(s *subscription) bool {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	for flushed := false; !c.out.closed && c.session.conn == c && !s.dead && c.fullByHalf(); {
		if flushed {
			c.out.moved.Wait()
			continue
		}
		c.session.mu.Unlock()
		c.flush(true)
		flushed = true
		c.session.mu.Lock()
	}
	return !c.out.closed && c.session.conn == c && !s.dead
}

// fullByHalf is called with mu held.
func (c *conn) fullByHalf() bool {
	n, size := len(c.session.queue)-c.session.head, c.session.bytes
	if l := c.session.lasting; l != nil {
		n, size = max(n, l.waiting), max(size, l.weight)
	}
	return n > c.broker.options.QueueMessages/2 || size > c.broker.options.QueueBytes/2
}

// giveOne is what another broker does with a retained message, unless a newer one
// came meanwhile.
func (c *conn) giveOne(s *subscription, topic string, payload []byte, contentType string) {
	m := &message{topic: topic, payload: payload, qos: 1, kept: true, props: &packet.Properties{}}
	m.props.SetText(packet.ContentType, contentType)
	var o bus.Result
	c.session.offer(m, &o, nil, &s.Subscription) // flushed with the batch
	c.broker.settle(&o, nil, nil)
}
