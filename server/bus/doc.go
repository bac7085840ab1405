// Package bus carries messages and events from publishers to subscribers, whatever transport either of them uses.
//
// Publications are MQTT PUBLISH packets, events and states reported over HTTP, signed configurations, and wills. Each is
// delivered to all subscriptions with a filter that matches its topic. MQTT sessions and streams of server-sent events are
// subscriptions of the same tree. The bus keeps the order of the publications of a topic the same for all subscribers. It
// numbers the events, and buffers the last ones for readers that are slow or reconnect. It stores nothing on a disk: a
// subscriber that must not lose a message states with [Result.Stored] what must be on a disk before the publication is
// acknowledged. It refuses subscriptions that the subscriber's authority does not allow, or for which its account has no
// room.
package bus
