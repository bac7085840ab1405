package command

// Remaining returns how many commands are watched, how many devices have a delivery, and how many deliveries wait for a
// checkpoint: all must be zero once every caller has left.
func (svc *Service) Remaining() (watched, deliveries, covers int) {
	svc.mu.Lock()
	defer svc.mu.Unlock()
	return len(svc.waiters), len(svc.deliveries), len(svc.awaitingCheckpoint)
}
