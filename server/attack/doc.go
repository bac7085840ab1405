// Package attack tests the whole server against attackers: forged, replayed, expired and foreign
// credentials at every real endpoint, and the device's checks against an attacker with the server's
// stolen keys. The tests are here; attack/hostile is the hostile server for devices.
package attack
