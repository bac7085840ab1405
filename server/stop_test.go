package server_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
)

// After a clean stop every entry is signed, also those of a part that was still at work when all others had ended.
func TestShutdownSignsFinalCheckpoint(t *testing.T) {
	c := config(t, filepath.Join(t.TempDir(), "data"))
	s, err := server.New(t.Context(), c, quiet)
	check(t, err)
	stopping, goOn := make(chan struct{}), make(chan struct{})
	s.Beside(func(ctx context.Context, add func(audit.Entry) error) error {
		<-ctx.Done()
		close(stopping)
		<-goOn
		return add(audit.Actor{Tenant: watchword.DefaultTenant}.DoneEntry(audit.CommandExpire, "cmd_1", time.Now(), nil))
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	testwait.For(t, "the server", s.Ready())
	cancel()
	testwait.For(t, "the end of the other parts", stopping)
	select {
	case err := <-ended:
		t.Fatalf("the server stopped before one of its parts: %v", err)
	case <-time.After(100 * time.Millisecond): // as long as a keeper that does not wait needs to sign
	}
	close(goOn)
	check(t, testwait.For(t, "the end of the server", ended))
	v, err := server.VerifyLog(t.Context(), c.Data, nil)
	check(t, err)
	if v.Entries < 2 || v.Uncovered != 0 {
		t.Errorf("of %d entries the last %d are not signed", v.Entries, v.Uncovered)
	}
}
