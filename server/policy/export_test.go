package policy

// Examined returns how many documents with labels are examined to find those of a subject.
func (s *Set) Examined(w Subject) (n int) {
	for k, v := range w.Labels {
		n += len(s.byLabel[[2]string{k, v}])
	}
	return n
}
