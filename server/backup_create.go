package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"filippo.io/age"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/backup"
	"github.com/watchword-iot/watchword/server/internal/localsocket"
	"github.com/watchword-iot/watchword/server/sqlite"
)

// CreateBackup writes a backup of a data folder to a new file: through the server that runs on it, which goes on serving, or from the
// folder itself. The audit log has an entry of it, which is written before the file is complete. An existing file is refused
// with conflict, or replaced if force.
//
// Codes: not_found before the first start; conflict; config_invalid; folder_in_use for a server that cannot be reached; those of
// writeBackup.
func CreateBackup(ctx context.Context, cfg Config, o Options, file string, force bool, key BackupKey) (out BackupFile, err error) {
	if err := checkStarted(cfg.Data); err != nil {
		return out, err
	}
	if file, err = filepath.Abs(file); err != nil {
		return out, err
	}
	start := time.Now()
	err = durable.WriteStream(file, force, func(w io.Writer) error {
		counted := newHashed(w)
		out, err = askBackup(ctx, cfg.Data, counted, file, key)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			out, err = backupFolder(ctx, counted, cfg, o, file, key)
		}
		if err == nil && (out.SHA256 != counted.sum() || out.Size != counted.n) {
			err = watchword.Refuse(watchword.Unavailable, "the backup did not arrive as the server sent it")
		}
		return err
	})
	if errors.Is(err, fs.ErrExist) {
		return out, watchword.Wrap(err, watchword.Conflict, "%s exists already; --force replaces it", file)
	}
	out.File, out.Took = file, time.Since(start)
	return out, fileError(err, file)
}

// fileError says in words what the system says of a file that cannot be written. Other errors pass unchanged.
func fileError(err error, file string) error {
	if _, ours := errors.AsType[*watchword.Error](err); err == nil || ours {
		return err
	}
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return watchword.Wrap(err, watchword.Unavailable, "the backup %s was not written: the disk is full", file)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return watchword.Wrap(err, watchword.Unavailable, "the backup %s was not written: this user cannot write to its folder", file)
	case errors.Is(err, fs.ErrNotExist):
		return watchword.Wrap(err, watchword.Unavailable, "the backup %s was not written: its folder does not exist", file)
	}
	return watchword.Wrap(err, watchword.Unavailable, "the backup %s was not written: %s", file, err)
}

// hashed counts and hashes what is written.
type hashed struct {
	w    io.Writer
	hash hash.Hash
	n    int64
	err  error // of w
}

func newHashed(w io.Writer) *hashed { return &hashed{w: w, hash: sha256.New()} }

func (h *hashed) Write(b []byte) (int, error) {
	n, err := h.w.Write(b)
	h.hash.Write(b[:n]) // hashing does not fail
	h.n += int64(n)
	h.err = err
	return n, err
}

func (h *hashed) sum() string { return hex.EncodeToString(h.hash.Sum(nil)) }

// backupFolder makes a backup of a folder without a server.
func backupFolder(ctx context.Context, w io.Writer, cfg Config, o Options, file string, key BackupKey) (out BackupFile, err error) {
	recipients, err := key.recipients(cfg)
	if err != nil {
		return out, err
	}
	s := forFolder(cfg, o)
	defer s.close()
	if s.lock, err = openData(cfg.Data); err != nil {
		return out, err
	}
	out, err = s.makeBackup(ctx, w, recipients)
	out.File = file
	if err != nil {
		return out, err
	}
	s.openBackupRecords(ctx)
	s.recordBackup(ctx, out, false)
	// A backup changes no database of an older version, so that it can be made before an upgrade: then it has no entry.
	if own, err := sqlite.SchemaVersion(); err != nil {
		return out, err
	} else if out.Manifest.Schema != own {
		s.o.Log.WarnContext(ctx, "the backup has no audit entry: the folder is of another version", slog.Int64("schema", out.Manifest.Schema))
		return out, nil
	}
	if err := s.openStore(ctx); err != nil {
		return out, err
	}
	return out, s.store.AddEntry(ctx, s.backupEntry(operator(), out))
}

// makeBackup writes an archive of the server's folder to w.
func (s *Server) makeBackup(ctx context.Context, w io.Writer, recipients []age.Recipient) (out BackupFile, err error) {
	counted := newHashed(w)
	out.Manifest, err = writeBackup(ctx, counted, s.cfg, s.o, recipients)
	out.SHA256, out.Size = counted.sum(), counted.n
	return out, err
}

// backupEntry is the audit entry of a backup: all secrets of the server are in that file.
func (s *Server) backupEntry(by audit.Actor, f BackupFile) audit.Entry {
	return by.DoneEntry(audit.BackupCreate, filepath.Base(f.File), s.o.Now(), map[string]string{
		"sha256": f.SHA256, "size": fmt.Sprint(f.Size), "log_size": fmt.Sprint(f.Manifest.Log.Size), "log_root": f.Manifest.Log.Hash,
	})
}

// backupRequest is the request for a backup over the control socket. The passphrase does not leave the machine.
type backupRequest struct {
	ID         string   `json:"id"` // by which the client asks for the result
	File       string   `json:"file"`
	Recipients []string `json:"recipients,omitempty"`
	Passphrase string   `json:"passphrase,omitempty"`
}

// backupResult is how the last backup over the control socket ended.
type backupResult struct {
	ID    string        `json:"id"`
	File  BackupFile    `json:"file"`
	Error *controlError `json:"error,omitempty"`
}

// backups is the state of the backups of a running server.
type backups struct {
	busy    sync.Mutex     // held while a backup is made
	running sync.WaitGroup // requests over the control socket

	failures atomic.Int64 // of scheduled backups, since the start

	mu        sync.Mutex
	ending    bool // no further request begins
	last      backupResult
	records   backupRecords
	scheduled error // of the last scheduled backup
}

// begin counts a request that uses the store; the caller calls running.Done.
func (b *backups) begin() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ending {
		return watchword.Refuse(watchword.Unavailable, "the server is shutting down")
	}
	b.running.Add(1)
	return nil
}

// wait returns when no request uses the store any more. Their connections are closed before.
func (b *backups) wait() {
	b.mu.Lock()
	b.ending = true
	b.mu.Unlock()
	b.running.Wait()
}

const (
	// backupWriteTimeout is how long a client of the control socket may leave what is sent unread: meanwhile the write-ahead log grows.
	backupWriteTimeout = 30 * time.Second
	maxBackupRequest   = 64 << 10
)

// serveBackup streams a backup over the control socket.
func (s *Server) serveBackup(w http.ResponseWriter, r *http.Request) {
	if err := s.backups.begin(); err != nil {
		answerControl(w, nil, err)
		return
	}
	defer s.backups.running.Done()
	var in backupRequest
	err := json.NewDecoder(io.LimitReader(r.Body, maxBackupRequest)).Decode(&in)
	if err != nil {
		answerControl(w, nil, watchword.Wrap(err, watchword.BadRequest, "the request must be JSON with id and file"))
		return
	}
	recipients, err := BackupKey{in.Recipients, watchword.Secret(in.Passphrase)}.recipients(s.cfg)
	if err == nil && len(recipients) == 0 {
		_, err = backup.NewWriter(io.Discard, time.Time{}, nil) // says what is missing
	}
	if err == nil && !s.backups.busy.TryLock() {
		err = watchword.Refuse(watchword.Conflict, "another backup is being made now; try again when it is done")
	}
	if err != nil {
		answerControl(w, nil, err)
		return
	}
	defer s.backups.busy.Unlock()
	c := http.NewResponseController(w)
	// The deadlines of the server are those of short requests. The first byte goes out before the work, which may take long.
	err = errors.Join(c.SetReadDeadline(time.Time{}), c.SetWriteDeadline(time.Now().Add(backupWriteTimeout)), c.Flush())
	out := BackupFile{}
	if err == nil {
		out, err = s.makeBackup(r.Context(), deadlineWriter{w, c}, recipients)
	}
	out.File = in.File
	if err == nil {
		err = s.store.AddEntry(r.Context(), s.backupEntry(operator(), out))
	}
	result := backupResult{ID: in.ID, File: out}
	if err == nil {
		s.recordBackup(r.Context(), out, false)
	} else {
		s.o.Log.ErrorContext(r.Context(), "no backup was made", slog.String("file", in.File), slog.Any("err", err))
		result.Error = &controlError{watchword.CodeOf(err), publicText(err)}
	}
	s.backups.mu.Lock()
	s.backups.last = result
	s.backups.mu.Unlock()
	if err != nil {
		panic(http.ErrAbortHandler) // the client sees that the stream is incomplete, and asks why
	}
}

// deadlineWriter gives each write a deadline of its own.
type deadlineWriter struct {
	w io.Writer
	c *http.ResponseController
}

func (d deadlineWriter) Write(b []byte) (int, error) {
	if err := d.c.SetWriteDeadline(time.Now().Add(backupWriteTimeout)); err != nil {
		return 0, err
	}
	return d.w.Write(b)
}

func (s *Server) lastBackup() backupResult {
	s.backups.mu.Lock()
	defer s.backups.mu.Unlock()
	return s.backups.last
}

// askBackup has the running server write a backup to w. The error is fs.ErrNotExist or ECONNREFUSED where none runs.
func askBackup(ctx context.Context, dir string, w *hashed, file string, key BackupKey) (out BackupFile, err error) {
	id := rand.Text()
	client := controlClient(dir)
	body, err := json.Marshal(backupRequest{ID: id, File: file, Recipients: key.Recipients, Passphrase: string(key.Passphrase)})
	if err != nil {
		return out, err
	}
	stream, err := client.Stream(ctx, rest.Request{Method: http.MethodPost, Path: "/backup", Type: "application/json", Body: body})
	if err != nil {
		return out, err
	}
	_, err = io.Copy(w, stream)
	err = errors.Join(err, stream.Close())
	if w.err != nil { // of the file: the server does not know it
		return out, w.err
	}
	var last backupResult
	if _, why := client.JSON(ctx, rest.Request{Method: http.MethodGet, Path: "/backup", Max: 1 << 20}, nil, &last); why != nil {
		return out, errors.Join(err, why)
	}
	if last.ID != id {
		return out, errors.Join(err, watchword.Refuse(watchword.Conflict, "another backup was made at the same time; try again"))
	}
	if last.Error != nil {
		return out, &watchword.Error{Code: last.Error.Code, Detail: last.Error.Detail, Err: err}
	}
	return last.File, err
}

// controlClient returns a client of the server that runs on a data folder.
func controlClient(dir string) *rest.Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return localsocket.Dial(ctx, dir) }
	return rest.New("http://localhost", rest.WithoutKeepAlive(rest.Transport(nil, dial)), nil)
}
