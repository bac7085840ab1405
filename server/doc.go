// Package server is the builder: it assembles the whole house from one Config,
// so that a test can run all of it. In come a configuration and a data folder,
// out comes a server that listens. It refuses folders in use, keys that others
// can read, and configurations that promise more than they secure.
package server
