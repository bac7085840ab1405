// Package mqtt is the MQTT server, versions 3.1.1 and 5, over TLS, TCP and WebSocket. Packets of clients come
// in; messages go out to subscribers, and commands to the devices they are for. Credentials are verified by
// an [Authenticator]; what a connection may do is asked of its [session.Session] at each act. Whatever that
// does not allow is refused, or taken away again.
//
// A packet's way: [Broker.Handle] starts conn.serve, which reads; conn.handlePackets cuts packets;
// conn.handlePacket calls the method of the packet's type, which is in the file of that name (connect.go,
// publish.go, ack.go, subscribe.go, unsubscribe.go, keepalive.go, disconnect.go, enhanced_auth.go).
package mqtt
