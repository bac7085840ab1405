// Package packet is the codec of MQTT 3.1.1 and 5.0: bytes in, packets out, and
// back. It checks every limit before it allocates, and refuses whatever the
// standards call malformed or a protocol error, with the reason code that the
// other side must be told. It knows only bytes: no sockets, sessions or topics.
package packet
