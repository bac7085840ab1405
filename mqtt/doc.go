// Package mqtt is the side door: the MQTT engine, 3.1.1 and 5. In come
// connections, out go messages to whoever may hear them, and commands to the
// devices they are for. It knows nothing of tokens: it asks the office what
// papers say and the session what may be done, and refuses, or takes away again,
// whatever the session does not allow.
package mqtt
