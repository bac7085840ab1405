package server

import (
	"context"

	"github.com/watchword-iot/watchword/server/audit"
)

// Beside has part run beside the server's own parts, with a context that ends when the server stops. add writes an entry.
func (s *Server) Beside(part func(ctx context.Context, add func(audit.Entry) error) error) {
	s.background = append(s.background, func(ctx context.Context) error {
		return part(ctx, func(e audit.Entry) error { return s.store.AddEntry(context.WithoutCancel(ctx), e) })
	})
}
