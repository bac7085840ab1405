// Package devices implements [hostile.Device] for the devices of this product: the SDK in this
// process, and the agent as a program.
package devices
