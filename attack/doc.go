// Package attack is the burglars: forged, replayed, stale and foreign papers,
// tried at every real door of a whole house, and the device's own checks tried
// with the server's stolen keys. Its tests are here; attack/hostile is the hostile
// server that devices meet.
package attack
