// Package watchword defines the types that all packages share: subjects, keys, permissions, commands, receipts, and the error
// codes. It has plain values only, does no I/O and imports only the standard library. It refuses names that could have another
// meaning in a topic, a path or a selector.
package watchword
