package server

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/server/internal/clock"
)

// ClockStatus is what is known of the clock of a server's machine.
type ClockStatus struct {
	Trusted bool         `json:"trusted"`
	Reason  clock.Reason `json:"reason,omitempty"` // why it is not trusted
	Why     string       `json:"why,omitempty"`    // the same in words
	Wall    time.Time    `json:"wall"`             // what the clock says
	Time    time.Time    `json:"time"`             // what the server goes by
	Mark    time.Time    `json:"mark,omitzero"`    // the clock is not trusted before it
}

func clockStatus(st clock.Status) ClockStatus {
	return ClockStatus{
		Trusted: st.Reason == "", Reason: st.Reason, Why: st.Explain(),
		Wall: st.Wall.UTC().Truncate(time.Second), Time: st.Time.UTC().Truncate(time.Second), Mark: st.Mark.Certain.UTC().Truncate(time.Second),
	}
}

// Limits of one request over the control socket.
const (
	controlTimeout = 10 * time.Second
	maxControl     = 64 << 10 // bytes of an answer
)

// controlServer answers programs of the server's own user on this machine: package localsocket.
func (s *Server) controlServer() *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /clock", func(w http.ResponseWriter, _ *http.Request) { answerControl(w, clockStatus(s.clock.Read()), nil) })
	mux.HandleFunc("POST /clock/accept", func(w http.ResponseWriter, r *http.Request) {
		st, err := s.acceptClock(r.Context())
		answerControl(w, clockStatus(st), err)
	})
	mux.HandleFunc("POST /backup", s.serveBackup)
	mux.HandleFunc("GET /backup", func(w http.ResponseWriter, _ *http.Request) { answerControl(w, s.lastBackup(), nil) })
	mux.HandleFunc("POST /operator/recover", s.serveRecovery)
	h := newHTTPServer(mux)
	h.ReadHeaderTimeout, h.ReadTimeout, h.WriteTimeout, h.MaxHeaderBytes = controlTimeout, controlTimeout, controlTimeout, 16<<10
	return h
}

// answerControl answers with a JSON value, or with an error.
func answerControl(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		v = controlError{watchword.CodeOf(err), publicText(err)}
	}
	_ = json.NewEncoder(w).Encode(v) // the error means that the client has closed the connection
}

type controlError struct {
	Code   watchword.Code `json:"code"`
	Detail string         `json:"detail"`
}

func (s *Server) serveControl(l net.Listener) error {
	if err := s.controlHTTP.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// ReadClock returns the state of the clock of the server that runs on a data folder, or, where none does, what a server that starts
// now would find. Codes: not_found before the first start, unavailable, folder_in_use, folder_newer.
func ReadClock(ctx context.Context, cfg Config, o Options) (ClockStatus, error) {
	return clockAt(ctx, cfg, o, http.MethodGet, "/clock", func(s *Server) (clock.Status, error) { return s.clock.Read(), nil })
}

// AcceptClock vouches for the clock of this machine as it is now: for the server that runs on a data folder, or for the next that
// starts on it. It needs the rights of the server's user, and writes an entry of the first operator. Codes: not_found before the
// first start; clock_untrusted before the build date of the program; unavailable, folder_in_use, folder_newer.
func AcceptClock(ctx context.Context, cfg Config, o Options) (ClockStatus, error) {
	return clockAt(ctx, cfg, o, http.MethodPost, "/clock/accept", func(s *Server) (clock.Status, error) { return s.acceptClock(ctx) })
}

// clockAt asks the running server, or else opens the data folder.
func clockAt(ctx context.Context, cfg Config, o Options, method, path string, do func(*Server) (clock.Status, error)) (ClockStatus, error) {
	if err := checkStarted(cfg.Data); err != nil {
		return ClockStatus{}, err
	}
	st, err := askControl(ctx, cfg.Data, method, path)
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
		return st, err
	}
	s := forFolder(cfg, o)
	defer s.close()
	if s.lock, err = openData(cfg.Data); err != nil {
		return ClockStatus{}, err
	}
	if err := s.openStore(ctx); err != nil {
		return ClockStatus{}, err
	}
	found, err := do(s)
	return clockStatus(found), err
}

// askControl sends one request over the control socket. The error is fs.ErrNotExist or ECONNREFUSED where no server runs.
func askControl(ctx context.Context, dir, method, path string) (st ClockStatus, err error) {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	_, err = controlClient(dir).JSON(ctx, rest.Request{Method: method, Path: path, Max: maxControl}, nil, &st)
	return st, err
}
