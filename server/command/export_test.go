package command

// Remaining returns how many commands are watched, how many devices have a line, and how many lines
// wait for a checkpoint: what must be nothing once everybody has gone.
func (svc *Service) Remaining() (watched, deliveries, covers int) {
	svc.mu.Lock()
	defer svc.mu.Unlock()
	return len(svc.waiters), len(svc.deliveries), len(svc.awaitingCheckpoint)
}
