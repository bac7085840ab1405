package server

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"path/filepath"
	"syscall"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/server/enroll"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/token"
)

// Recovery is the one-time link with which an owner gets a key.
type Recovery struct {
	Operator watchword.SubjectID `json:"operator"`
	Link     string              `json:"link"`
	Code     string              `json:"code"`
	Pin      string              `json:"pin"`
	Expires  time.Time           `json:"expires_at"`
}

// How a recovery reached the store, as its log entry says.
const (
	throughSocket = "socket"
	throughFolder = "folder"
)

// recoveryRequest is the body of POST /operator/recover on the control socket, of at most 1 KiB.
type recoveryRequest struct {
	Operator watchword.SubjectID `json:"operator"`
}

// RecoverOperator makes a link of ten minutes for an owner of that id: over the control socket of the server that runs on the data
// folder, or in the folder itself where none runs. It needs the rights of the server's user, and in the folder its lock and the
// key-encryption key. Codes: not_found before the first start; bad_request; conflict for an id of another subject and for a
// suspended owner; folder_in_use, folder_newer, key_unwrap, unavailable.
func RecoverOperator(ctx context.Context, cfg Config, id watchword.SubjectID, o Options) (Recovery, error) {
	if err := checkStarted(cfg.Data); err != nil {
		return Recovery{}, err
	}
	r, err := askRecovery(ctx, cfg.Data, id)
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
		return r, err
	}
	s := forFolder(cfg, o)
	defer s.close()
	if s.lock, err = openData(cfg.Data); err != nil {
		return Recovery{}, err
	}
	if err := s.openStore(ctx); err != nil {
		return Recovery{}, err
	}
	if err := s.openRing(ctx); err != nil { // who does not have the key-encryption key makes no owner
		return Recovery{}, err
	}
	url, err := lastURL(cfg.Data)
	if err != nil {
		return Recovery{}, err
	}
	s.enrollment = enroll.New(s.store, enroll.Options{
		PublicURL: url, Issuers: s.keys.Issuers, TrustPin: func() string { return token.TrustPin(s.keys.Root()) }, Live: session.NewLive(),
	})
	out, err := s.recoverOperator(ctx, id, throughFolder)
	if err == nil {
		s.signStoppedLog(ctx)
	}
	return out, err
}

// lastURL returns the address that the server of a data folder had when it was last started.
func lastURL(dir string) (string, error) {
	b, err := durable.ReadTrusted(filepath.Join(dir, serverFile), maxControl)
	if err != nil {
		return "", err
	}
	var f ServerFile
	if err := json.Unmarshal(b, &f); err != nil || f.URL == "" {
		return "", watchword.Wrap(err, watchword.ConfigInvalid, "%s is damaged: start the server once", filepath.Join(dir, serverFile))
	}
	return f.URL, nil
}

func (s *Server) recoverOperator(ctx context.Context, id watchword.SubjectID, through string) (Recovery, error) {
	owner, link, err := s.enrollment.Recover(ctx, session.Actor{Actor: operator()}, id, through, s.o.Now())
	if err != nil {
		return Recovery{}, err
	}
	s.o.Log.WarnContext(ctx, "a link for an owner was made on this machine; operators are told of it for 7 days, or until it is acknowledged",
		slog.String("operator", string(owner.ID)), slog.String("through", through), slog.Time("link_expires", link.Expires))
	return Recovery{Operator: owner.ID, Link: link.URL, Code: link.Code, Pin: link.Pin, Expires: link.Expires.UTC()}, nil
}

// serveRecovery answers POST /operator/recover on the control socket.
func (s *Server) serveRecovery(w http.ResponseWriter, r *http.Request) {
	const maxBody = 1 << 10
	var in recoveryRequest
	var out Recovery
	err := jsonv2.UnmarshalRead(http.MaxBytesReader(w, r.Body, maxBody), &in, jsonv2.RejectUnknownMembers(true))
	if err != nil {
		err = watchword.RefuseField("body", "must be a JSON object with the member operator")
	} else {
		out, err = s.recoverOperator(r.Context(), in.Operator, throughSocket)
	}
	answerControl(w, out, err)
}

// askRecovery asks the running server. The error is fs.ErrNotExist or ECONNREFUSED where none runs.
func askRecovery(ctx context.Context, dir string, id watchword.SubjectID) (r Recovery, err error) {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	_, err = controlClient(dir).JSON(ctx, rest.Request{Method: http.MethodPost, Path: "/operator/recover", Max: maxControl}, recoveryRequest{id}, &r)
	return r, err
}

// warnNotices repeats the notices in the process log of a server that starts.
func (s *Server) warnNotices(ctx context.Context) error {
	for _, t := range s.o.tenants() {
		all, err := s.store.Notices(ctx, t, s.o.Now())
		if err != nil {
			return err
		}
		for _, n := range all {
			s.o.Log.WarnContext(ctx, "a notice is not acknowledged", slog.String("tenant", string(n.Tenant)), slog.String("kind", string(n.Kind)), slog.String("object", string(n.Object)), slog.Time("at", n.At))
		}
	}
	return nil
}
