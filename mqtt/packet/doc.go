// Package packet encodes and decodes MQTT 3.1.1 and 5.0 packets. It checks every limit before it
// allocates, and refuses malformed packets and protocol errors with the reason code to be sent to
// the peer. It knows only bytes: no sockets, sessions or topics.
package packet
