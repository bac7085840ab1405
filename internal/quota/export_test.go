package quota

// Accounts returns the number of accounts that are not empty.
func (l *Ledger[K]) Accounts() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.accounts)
}
