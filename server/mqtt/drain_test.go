package mqtt_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqtt"
)

// drain disconnects all clients, and waits at most five seconds.
func (srv *testServer) drain() (gone <-chan struct{}) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		srv.broker.Drain(ctx)
	}()
	return done
}

// Accepted messages reach connected clients, complete and in order, before DISCONNECT; and their publishers get the
// acknowledgement.
func TestDrainKeepsMessages(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "away", "a")
		sub := srv.device("sub", oneAtATime)
		sub.subscribe(1, "a")
		pub := srv.device("pub")
		for n := 1; n <= 100; n++ {
			pub.publish(1, "a", fmt.Sprint(n))
		}
		synctest.Wait()
		srv.store.block()
		pub.send(&packet.Publish{Topic: "a", QoS: 1, ID: 1000, Payload: []byte("101")})
		synctest.Wait()
		gone := srv.drain()
		synctest.Wait()
		pub.send(&packet.Publish{Topic: "a", QoS: 1, ID: 1001, Payload: []byte("too late")})
		pub.wantNothing()
		srv.store.unblock()
		if a := want[*packet.Ack](pub); a.ID != 1000 || a.Reason.Failed() {
			t.Errorf("%+v", a)
		}
		pub.wantDisconnect(packet.ServerShuttingDown)
		if got := sub.receiveAll(101); !slices.Equal(got, sequence(1, 101)) {
			t.Errorf("%v", got)
		}
		sub.wantDisconnect(packet.ServerShuttingDown)
		<-gone
		srv.crash(mqtt.Options{})
		if got := srv.reconnect(packet.V5, "away").receiveAll(101); !slices.Equal(got, sequence(1, 101)) {
			t.Errorf("%v", got)
		}
	})
}

// A client that does not read is disconnected in the end, and delays no other.
func TestDrainHasADeadline(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		deaf := srv.device("deaf", func(p *packet.Connect) { p.Will = &packet.Will{Topic: "will", QoS: 1, Payload: []byte("gone")} })
		deaf.subscribe(1, "a", "will")
		other := srv.device("other")
		other.publish(1, "a", "x")
		want[*packet.Publish](deaf) // and no acknowledgement
		from := time.Now()
		gone := srv.drain()
		if d := want[*packet.Disconnect](other); d.Reason != packet.ServerShuttingDown {
			t.Errorf("%#x", d.Reason)
		}
		if d := time.Since(from); d > 0 {
			t.Errorf("another waited for %v", d)
		}
		<-gone
		if d := time.Since(from); d != 5*time.Second {
			t.Errorf("over after %v", d)
		}
		deaf.wantDisconnect(packet.ServerShuttingDown) // and no will
	})
}

// A client that does not read, and whose pending responses block its own reader, delays others for no longer than the
// delivery of accepted messages may take.
func TestDrainIsNotBlockedByStalledClient(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		other := srv.device("other")
		nc, theirs := net2()
		srv.broker.Handle(theirs)
		deaf := &testClient{t: t, v: packet.V5, nc: nc}
		go deaf.send(hello(packet.V5, "deaf", srv.token("deaf", time.Hour)), &packet.Ping{}) // and reads nothing
		synctest.Wait()
		from := time.Now()
		gone := srv.drain()
		want[*packet.Disconnect](other)
		if d := time.Since(from); d > time.Second {
			t.Errorf("another waited for %v", d)
		}
		<-gone
		_ = nc.Close()
	})
}

// A connection before its CONNECT is not waited for.
func TestDrainClosesUnauthenticatedConnections(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		c := srv.dialRaw(packet.V5)
		from := time.Now()
		<-srv.drain()
		if _, open := <-c.got; open || time.Since(from) > 0 {
			t.Errorf("it is there after %v", time.Since(from))
		}
	})
}
