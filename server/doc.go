// Package server assembles all parts from one Config, so that a test can run the whole server. A
// configuration and a data folder come in; a listening server comes out. It refuses a data folder
// in use, keys that others can read, and invalid configurations.
package server
