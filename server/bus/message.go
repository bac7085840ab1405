package bus

import "errors"

// Message is one publication. A transport has a type of its own for it, which all its receivers share; other
// transports read it by these methods. It does not change once it is published.
type Message interface {
	// Topic returns the topic, a well-formed one (MQTT 5.0 §4.7).
	Topic() string
}

// Document is a publication of the server itself, or of a transport that has no message type of its own.
type Document struct {
	Name        string // the topic
	ContentType string // empty for none
	Payload     []byte

	// Encoded is what a transport makes of the document once, for all of its receivers. Only Deliver of its
	// subscribers reads and writes it.
	Encoded any
}

// Topic returns the topic.
func (d *Document) Topic() string { return d.Name }

// Result is what became of a publication. The caller of Publish owns it; subscribers fill it in.
type Result struct {
	Receivers   int   // how many subscribers have the message, or wait for it
	Redelivered bool  // another member of a shared group had it before: it stays there if a member has no room for it
	Retained    bool  // the retained message of the topic was set, or put back: what it is now is to be written
	Err         error // why a subscriber that should have the message does not have it

	// Stored is what must be on disk before the publication may be acknowledged: one for each store that has a copy, that of
	// this process or of another node.
	Stored []Stored
}

// Stored is a message in the memory of a store, not written yet, with the sessions that wait for it.
type Stored interface {
	// Commit has it written. It is called once, and does not wait.
	Commit() Commit
}

// Commit is a write to disk that is under way.
type Commit interface {
	// Done is closed when the write has ended. It ends in any case: a store on another node bounds the wait for its answer.
	Done() <-chan struct{}
	// Err returns why it failed, naming the store where there are several; nil where it is on disk. It is for after Done.
	Err() error
}

// FullError is the error of a subscriber that has no room for a message; it wraps the refusal, which names the limit.
// It is of no concern to a publisher whose transport has no word for it.
type FullError struct{ Refusal error }

func (f FullError) Error() string { return f.Refusal.Error() }

// Unwrap returns the refusal.
func (f FullError) Unwrap() error { return f.Refusal }

// IsFull reports whether err is that of a subscriber without room.
func IsFull(err error) bool {
	_, is := errors.AsType[FullError](err)
	return is
}
