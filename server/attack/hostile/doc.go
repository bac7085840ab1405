// Package hostile is a server for devices under test: a small good server, complete enough for a
// device to enroll and execute commands, which a table of cases turns into a misbehaving one, or
// into a man in the middle. Devices in any language implement [Device]; [Case.Run] reports the
// limits that a device exceeds.
//
// The server has its own root, CA and keys, new for each [Server]. It serves HTTPS and MQTT over
// TLS on any two listeners: TCP for programs, or those of a [Network] for devices in this process,
// which can then use the virtual time of testing/synctest. It does not depend on the implementation
// of devices.
package hostile
