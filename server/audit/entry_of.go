package audit

// EntryOf returns the entry of an act from the object of the act: before is the object as the transaction found it, after
// as it wrote it. If the act adds the object, before is the zero value. A store calls the function within the transaction,
// and again if the transaction is repeated: the result depends on the arguments only.
type EntryOf[T any] func(before, after T) Entry

// FixedEntry returns an EntryOf for an act whose entry does not depend on the object.
func FixedEntry[T any](e Entry) EntryOf[T] { return func(T, T) Entry { return e } }
