package bus_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/server/bus"
)

// node is the bus's end of a connection to another node, whose subscriptions are in the tree of this one. It is written against
// the interface of the bus alone, as other nodes will be. Frames are lines:
//
//	from the other node             to it
//	subscribe FILTER                subscribed FILTER, or refused FILTER CODE
//	stored NUMBER                   message NUMBER TOPIC PAYLOAD
//	failed NUMBER REASON
type node struct {
	id     int64 // of all of its subscriptions: a message is sent once
	name   string
	conn   net.Conn
	tenant *bus.Tenant
	reads  bus.Authority // of the other node's subscribers
	copies bool          // a copy of each message is on the other node's disk before it is acknowledged
	out    chan string   // frames that wait to be written; without room a message is refused

	mu      sync.Mutex
	number  int
	pending map[int]*remoteCopy
}

// nodeQueue is how many frames wait for a node that is slow.
const nodeQueue = 16

func (n *node) Account() quota.Key {
	return quota.Key{Tenant: "t", Subject: watchword.SubjectID(n.name)}
}

func (n *node) Deliver(m bus.Message, _ []*bus.Subscription, _ *bus.Batch, r *bus.Result) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.number++
	select {
	case n.out <- fmt.Sprintf("message %d %s %s", n.number, m.Topic(), m.(*bus.Document).Payload):
	default:
		r.Err = bus.FullError{Refusal: watchword.Refuse(watchword.Busy, "%s is slow", n.name)}
		return
	}
	r.Receivers++
	if n.copies {
		c := &remoteCopy{done: make(chan struct{})}
		n.pending[n.number] = c
		r.Stored = append(r.Stored, c)
	}
}

// remoteCopy is a message that another node stores.
type remoteCopy struct {
	done chan struct{}
	err  error
}

func (c *remoteCopy) Commit() bus.Commit    { return c }
func (c *remoteCopy) Done() <-chan struct{} { return c.done }
func (c *remoteCopy) Err() error            { return c.err }

// serve handles the frames of the other node until the connection ends.
func (n *node) serve() {
	for lines := bufio.NewScanner(n.conn); lines.Scan(); {
		verb, rest, _ := strings.Cut(lines.Text(), " ")
		switch verb {
		case "subscribe":
			s := &bus.Subscription{Filter: rest, Subscriber: n, Number: n.id}
			if err := n.tenant.Subscribe(context.Background(), s, n.reads, rest, 100); err != nil {
				n.out <- fmt.Sprintf("refused %s %s", rest, watchword.CodeOf(err))
			} else {
				n.out <- "subscribed " + rest
			}
		case "stored", "failed":
			number, reason, _ := strings.Cut(rest, " ")
			var err error
			if verb == "failed" {
				err = watchword.Refuse(watchword.Unavailable, "%s: %s", n.name, reason)
			}
			n.mu.Lock()
			for i, c := range n.pending {
				if fmt.Sprint(i) == number {
					c.err = err
					close(c.done)
					delete(n.pending, i)
				}
			}
			n.mu.Unlock()
		}
	}
}

func (n *node) write() {
	for frame := range n.out {
		if _, err := n.conn.Write([]byte(frame + "\n")); err != nil {
			return
		}
	}
}

// remote is the other node's end.
type remote struct {
	t     *testing.T
	node  *node
	conn  net.Conn
	lines *bufio.Scanner
	heard []string // messages: NUMBER TOPIC PAYLOAD
}

var nodes atomic.Int64

func connectNode(t *testing.T, tenant *bus.Tenant, name string, reads bus.Authority, copies bool) *remote {
	t.Helper()
	here, there := net.Pipe() // without a buffer: what is written has been read
	n := &node{id: 100 + nodes.Add(1), name: name, conn: here, tenant: tenant, reads: reads, copies: copies, out: make(chan string, nodeQueue), pending: map[int]*remoteCopy{}}
	var running sync.WaitGroup
	running.Go(n.serve)
	running.Go(n.write)
	t.Cleanup(func() {
		_, _ = here.Close(), there.Close() // a pipe
		close(n.out)
		testwait.All(t, "the end of the connection to "+name, &running)
	})
	if err := there.SetDeadline(time.Now().Add(testwait.Limit)); err != nil {
		t.Fatal(err)
	}
	return &remote{t: t, node: n, conn: there, lines: bufio.NewScanner(there)}
}

func (r *remote) send(frame string) {
	r.t.Helper()
	if _, err := r.conn.Write([]byte(frame + "\n")); err != nil {
		r.t.Fatalf("%s: %q: %v", r.node.name, frame, err)
	}
}

// until reads frames until one begins with what is awaited, and returns the rest of it.
func (r *remote) until(awaited string) string {
	r.t.Helper()
	for r.lines.Scan() {
		if m, ok := strings.CutPrefix(r.lines.Text(), "message "); ok {
			r.heard = append(r.heard, m)
		}
		if rest, ok := strings.CutPrefix(r.lines.Text(), awaited); ok {
			return rest
		}
	}
	r.t.Fatalf("%s: no frame %q came: %v", r.node.name, awaited, r.lines.Err())
	return ""
}

// subscribe returns when the other node has the subscription: the barrier.
func (r *remote) subscribe(filter string) {
	r.t.Helper()
	r.send("subscribe " + filter)
	r.until("subscribed " + filter)
}

func publish(t *testing.T, tenant *bus.Tenant, topic, payload string) {
	t.Helper()
	if err := tenant.PublishDocument(&bus.Document{Name: topic, Payload: []byte(payload)}, nil); err != nil {
		t.Fatal(err)
	}
}

// What is published once the barrier has returned reaches a subscriber on another node, as long as its authority allows that.
func TestRemoteSubscriberHasWhatComesAfterTheBarrier(t *testing.T) {
	tenant := bus.New(bus.Options{}).Tenant("t")
	reads := &changing{}
	reads.set(false)
	r := connectNode(t, tenant, "node-b", reads, false)
	for round := range 50 {
		topic := fmt.Sprintf("a/%d", round)
		publish(t, tenant, topic, "before")
		r.subscribe(topic)
		publish(t, tenant, topic, "after")
		if got, want := r.until("message "), fmt.Sprintf("%d %s after", round+1, topic); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	reads.set(true)
	publish(t, tenant, "a/0", "denied now")
	r.send("subscribe b")
	if got := r.until("refused b "); got != string(watchword.Denied) {
		t.Errorf("a subscription that the authority denies: %s", got)
	}
	reads.set(false)
	publish(t, tenant, "a/0", "allowed again")
	if got := r.until("message "); got != "51 a/0 allowed again" {
		t.Errorf("got %q", got)
	}
}

// A publication is acknowledged when each node that stores a copy has said so. The error names those that have none.
func TestPublicationWaitsForTheCopiesOfAllNodes(t *testing.T) {
	tenant := bus.New(bus.Options{}).Tenant("t")
	remotes := map[string]*remote{}
	for _, name := range []string{"node-b", "node-c", "node-d"} {
		remotes[name] = connectNode(t, tenant, name, anything{}, true)
		remotes[name].subscribe("a")
	}
	local := &fails{stored: true}
	if err := tenant.Subscribe(t.Context(), &bus.Subscription{Filter: "a", Subscriber: local}, anything{}, "a", 0); err != nil {
		t.Fatal(err)
	}
	for _, failing := range [][]string{nil, {"node-b"}, {"node-d"}, {"node-b", "node-c", "node-d"}} {
		acknowledged := make(chan error, 1)
		go func() {
			acknowledged <- tenant.PublishDocument(&bus.Document{Name: "a", Payload: []byte("x")}, nil)
		}()
		numbers := map[string]string{}
		for name, r := range remotes {
			numbers[name], _, _ = strings.Cut(r.until("message "), " ")
		}
		left := len(remotes)
		for name, r := range remotes {
			select {
			case err := <-acknowledged:
				t.Fatalf("acknowledged while %d of 3 nodes have not stored it: %v", left, err)
			default:
			}
			if strings.Contains(fmt.Sprint(failing), name) {
				r.send("failed " + numbers[name] + " the disk is full")
			} else {
				r.send("stored " + numbers[name])
			}
			left--
		}
		err := testwait.For(t, "the acknowledgement", acknowledged)
		if (err != nil) != (failing != nil) || err != nil && watchword.CodeOf(err) != watchword.Unavailable {
			t.Errorf("%v failed: %v", failing, err)
		}
		for name := range remotes {
			if named := strings.Contains(fmt.Sprint(err), name+": the disk is full"); named != strings.Contains(fmt.Sprint(failing), name) {
				t.Errorf("%v failed: the error %q names %s: %v", failing, err, name, named)
			}
		}
	}
}

// A node that does not read gets what its queue holds; publishers and other subscribers do not wait for it.
func TestSlowNodeDelaysNoOther(t *testing.T) {
	tenant := bus.New(bus.Options{}).Tenant("t")
	slow := connectNode(t, tenant, "node-slow", anything{}, false)
	slow.subscribe("#")
	here := &recorder{}
	subscribe(t, tenant, here, 2, "a")
	const many = 10 * nodeQueue
	published, full := make(chan struct{}), 0
	go func() {
		defer close(published)
		for i := range many {
			var b bus.Batch
			var r bus.Result
			err := tenant.Publish(bus.Publication{Message: &bus.Document{Name: "a", Payload: fmt.Append(nil, i)}}, &b, &r)
			b.Flush()
			if err != nil {
				t.Errorf("publication %d: %v", i, err)
			}
			if _, is := errors.AsType[bus.FullError](r.Err); is {
				full++
			}
		}
	}()
	testwait.For(t, "the end of the publications", published)
	if n := len(here.heard); n != many {
		t.Errorf("the other subscriber has %d of %d messages", n, many)
	}
	if had := many - full; had < nodeQueue || had > nodeQueue+1 { // one more is being written
		t.Errorf("%d messages wait for the slow node, whose queue has room for %d", had, nodeQueue)
	}
	for i := range many - full { // it reads at last
		if got, want := slow.until("message "), fmt.Sprintf("%d a %d", i+1, i); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
}
