// Package watchword holds the nouns of the house: subjects, keys, permissions,
// commands, receipts, and the codes that an error may carry. It takes and gives
// plain values, does no I/O and imports the standard library alone. It refuses
// names that could escape into a topic, a path or a selector.
package watchword
