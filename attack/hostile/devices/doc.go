// Package devices puts the devices of this product behind [hostile.Device]: the SDK in this
// process, and the agent as a program. In comes a folder, out comes what may be shown to a hostile
// server. It refuses nothing by itself.
package devices
