// Package mqtt is the engine of the side door: who listens to what, in what
// order, and with what patience. In come packets, out go packets; it knows
// nothing of tokens and asks its session for every decision. It refuses whoever
// reads too slowly, and whatever a session does not allow.
package mqtt
