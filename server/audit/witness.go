package audit

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/internal/rest"
)

// Witness is a witness of another party, which remembers the last checkpoint that it saw, and cosigns only checkpoints that
// extend it (C2SP tlog-witness). It is not safe for concurrent use.
type Witness struct {
	Key    ledger.Key
	url    string
	client *http.Client

	size     int64     // of the checkpoint that it cosigned last, as far as known
	retryAt  time.Time // no request before this time
	failures int
}

// witnessTimeout is how long a checkpoint waits for its witnesses.
const witnessTimeout = 2 * time.Second

// ParseWitness parses a witness of the configuration: its verifier key, a space, the URL below which its add-checkpoint is.
// Code: config_invalid.
func ParseWitness(line string) (*Witness, error) {
	vkey, address, ok := strings.Cut(strings.TrimSpace(line), " ")
	bad := func(what string) (*Witness, error) {
		return nil, watchword.Refuse(watchword.ConfigInvalid, "audit.witnesses: %s; a witness is its key and its address: \"name+hash+base64 https://…\"", what)
	}
	if !ok {
		return bad("each witness must have an address")
	}
	k, err := ledger.ParseKey(vkey)
	if err != nil || !k.Witness() {
		return bad("the key must be a witness key (cosignature/v1, Ed25519)")
	}
	address = strings.TrimSpace(address)
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "https" && !(u.Scheme == "http" && loopback(u.Hostname())) || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return bad("the address must begin with https://, or with http:// for a loopback address")
	}
	w := &Witness{Key: k, url: strings.TrimRight(address, "/") + "/add-checkpoint", client: rest.WithoutRedirects(rest.WithHeaderLimit(nil))}
	w.client.Timeout = witnessTimeout
	return w, nil
}

func loopback(host string) bool { return host == "localhost" || host == "127.0.0.1" || host == "::1" }

// collectCosignatures requests the cosignatures of all witnesses concurrently, and returns the note with those that were
// received. A witness that does not answer is tried again after a pause.
func (signer *CheckpointSigner) collectCosignatures(ctx context.Context, c ledger.Checkpoint, note []byte) []byte {
	if len(signer.opts.Witnesses) == 0 {
		return note
	}
	ctx, cancel := context.WithTimeout(ctx, witnessTimeout)
	defer cancel()
	answers := make([][]byte, len(signer.opts.Witnesses))
	var wg sync.WaitGroup
	for i, w := range signer.opts.Witnesses {
		if now := signer.opts.Now(); now.Before(w.retryAt) {
			continue
		}
		wg.Go(func() {
			answer, err := w.cosign(ctx, c, note, signer.TileReader(ctx))
			if w.failures++; err == nil {
				w.failures, answers[i] = 0, answer
				return
			}
			// A witness that does not answer delays each checkpoint by the timeout, so it is tried at growing intervals.
			w.retryAt = signer.opts.Now().Add(min(time.Minute, time.Second<<min(w.failures, 6)))
			signer.opts.Log.WarnContext(ctx, "witness did not sign", slog.String("witness", w.Key.Name()), slog.Any("err", err))
		})
	}
	wg.Wait()
	for i, w := range signer.opts.Witnesses {
		if answers[i] == nil {
			continue
		}
		if with, err := ledger.Cosign(note, answers[i], w.Key); err == nil {
			note = with
		}
	}
	return note
}

// errSizeMismatch means that the witness cosigned another size last than expected.
var errSizeMismatch = errors.New("the witness knows another size")

// cosign returns the verified signature lines of the witness.
func (w *Witness) cosign(ctx context.Context, c ledger.Checkpoint, note []byte, read ledger.TileReader) ([]byte, error) {
	for range 2 {
		answer, err := w.request(ctx, c, note, read)
		if errors.Is(err, errSizeMismatch) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if _, err := ledger.Cosign(note, answer, w.Key); err != nil {
			return nil, err
		}
		w.size = c.Size
		return answer, nil
	}
	return nil, errSizeMismatch
}

func (w *Witness) request(ctx context.Context, c ledger.Checkpoint, note []byte, read ledger.TileReader) ([]byte, error) {
	proof, err := ledger.ConsistencyProof(c, w.size, read)
	if err != nil {
		return nil, fmt.Errorf("the witness has seen %d entries: %w", w.size, err)
	}
	var body bytes.Buffer
	fmt.Fprintf(&body, "old %d\n", w.size)
	for _, h := range proof {
		body.WriteString(base64.StdEncoding.EncodeToString(h[:]) + "\n")
	}
	body.WriteString("\n")
	body.Write(note)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, &body)
	if err != nil {
		return nil, err
	}
	res, err := w.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, ledger.MaxNote))
	if err != nil {
		return nil, err
	}
	switch res.StatusCode {
	case http.StatusOK:
		return answer, nil
	case http.StatusConflict:
		size, err := strconv.ParseInt(strings.TrimSpace(string(answer)), 10, 64)
		if err != nil || size < 0 || size == w.size || size > c.Size {
			return nil, watchword.Refuse(watchword.LogInvalid, "the witness knows a log of %.20q entries, and this log has %d: the witness knows another log of this name, or its state is wrong", strings.TrimSpace(string(answer)), c.Size)
		}
		w.size = size
		return nil, errSizeMismatch
	default:
		return nil, fmt.Errorf("the witness answered %s", res.Status)
	}
}
