// Package hostile is a server for devices under test: a good one, small but whole enough for a
// device to enroll with and to obey, which by a table of cases becomes a bad one, or a stranger who
// sits where the server was. In come devices in any language behind [Device], out come the cases
// that each of them does not hold. It refuses nothing: what a device sends is judged by
// [Case.Run] alone.
//
// The server has its own root, authority and keys, made anew for each [Server]. It serves HTTPS and
// MQTT over TLS through any two listeners: TCP's for programs, those of a [Network] for devices in
// this process, whose time testing/synctest can then make. Nothing here knows how a device is built.
package hostile
