// Package server assembles all parts from one Config, so that a test can run the whole server. Its input is a configuration
// and a data folder, its output a listening server. It refuses a data folder in use, keys that others can read, and invalid
// configurations.
package server
