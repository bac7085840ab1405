package acme_test

import "testing"

// All cases use one authority, since a process reads the public authorities once.
func TestWithARealAuthority(t *testing.T) {
	a := startAuthority(t)
	t.Run("manager", func(t *testing.T) { testManager(t, a) })
	t.Run("server", func(t *testing.T) { testServer(t, a) })
}
