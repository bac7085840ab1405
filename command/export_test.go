package command

// Held returns how many commands are watched, how many devices have a line, and how many lines
// wait for a checkpoint: what must be nothing once everybody has gone.
func (d *Desk) Held() (watched, lines, covers int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.watch), len(d.lines), len(d.covers)
}
