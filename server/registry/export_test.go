package registry

// SetMinBytes sets how much memory a directory may take however few sessions there are.
func (d *Directory) SetMinBytes(n int) {
	d.minBytes = n
	d.cache.Resize(n)
}

// CachedBytes returns how much memory its principals take.
func (d *Directory) CachedBytes() int { return d.cache.Bytes() }

// MaxDirectoryBytes is how much they may take with any number of sessions.
const MaxDirectoryBytes = maxDirectoryBytes

// BoundBytes returns the bound with some sessions.
func (d *Directory) BoundBytes(sessions, cached, bytes int) int {
	return d.boundBytes(sessions, cached, bytes)
}
