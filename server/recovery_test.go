package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/internal/localsocket"
	"github.com/watchword-iot/watchword/server/sqlite"
	"github.com/watchword-iot/watchword/token"
)

// notices are what a client was told.
type notices struct {
	mu  sync.Mutex
	all []api.Notice
}

func (n *notices) add(x api.Notice) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.all = append(n.all, x)
}

// take returns what was told since it was called last.
func (n *notices) take() []api.Notice {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := n.all
	n.all = nil
	return all
}

// client returns a client of a server as an operator with that key.
func client(t *testing.T, info server.Info, id watchword.SubjectID, key *jose.PrivateKey, told *notices) *admin.Client {
	t.Helper()
	ca, err := os.ReadFile(info.CAFile)
	check(t, err)
	o := admin.Options{URL: info.URL, Issuer: info.Issuer, CA: ca, Subject: id, Key: key}
	if told != nil {
		o.Notice = told.add
	}
	cl, err := admin.New(o)
	check(t, err)
	return cl
}

// redeem enrolls a new key with the code of a recovery.
func redeem(t *testing.T, info server.Info, r server.Recovery) *jose.PrivateKey {
	t.Helper()
	k, err := jose.GenerateKey(jose.P256)
	check(t, err)
	signer, err := k.Signer()
	check(t, err)
	proof, err := token.SignEnrollment(signer, info.Issuer, token.CodeHashClaim(r.Code), "", time.Now())
	check(t, err)
	body, err := json.Marshal(api.EnrollRequest{Code: r.Code, Keys: api.NamedKeys{PublicKeys: api.PublicKeys{Sign: k.Public().JWK()}, Name: "new laptop"}, Proof: proof})
	check(t, err)
	status, answer, err := fetch(t, http.MethodPost, info.URL+"/v1/enroll", string(body))
	if err != nil || status != http.StatusOK {
		t.Fatalf("%s did not enroll: %d %s %v", r.Operator, status, answer, err)
	}
	return k
}

// entriesOf returns the entries of one kind, of a folder in which no server need run.
func entriesOf(t *testing.T, data, kind string) (out []audit.Entry) {
	t.Helper()
	st, err := sqlite.Open(t.Context(), filepath.Join(data, "watchword.db"), sqlite.Options{})
	check(t, err)
	defer st.Close()
	all, err := audit.Entries(t.Context(), st, 0, 100_000)
	check(t, err)
	return slices.DeleteFunc(all, func(e audit.Entry) bool { return e.Kind != kind })
}

// All owners lost their keys: with the rights of the server's user a link makes an owner again, beside the running server and
// without one. The log has it, and every operator is told until an owner acknowledges it.
func TestOwnerIsRecovered(t *testing.T) {
	data, log := filepath.Join(t.TempDir(), "data"), &lockedBuffer{}
	o := (&machine{}).options(log, time.Time{})
	c := config(t, data)
	_, err := server.RecoverOperator(t.Context(), c, "operator", o)
	wantCode(t, "before the first start", err, watchword.NotFound)
	info, stop := runAt(t, c, o)
	local, err := admin.Local(data)
	check(t, err)
	_, err = local.CreateOperator(t.Context(), "vera", "viewer", 0)
	check(t, err)
	_, err = local.CreateDevice(t.Context(), "lamp-1", nil, 0)
	check(t, err)
	check(t, os.Remove(filepath.Join(data, "operator.jwk"))) // the only key of the only owner

	for id, want := range map[watchword.SubjectID]watchword.Code{"vera": watchword.Conflict, "lamp-1": watchword.Conflict, "no name": watchword.BadRequest, "": watchword.BadRequest} {
		_, err := server.RecoverOperator(t.Context(), c, id, o)
		wantCode(t, "for "+string(id), err, want)
	}
	r, err := server.RecoverOperator(t.Context(), c, "operator", o)
	check(t, err)
	if left := time.Until(r.Expires); left > 10*time.Minute || left < 9*time.Minute || !strings.HasPrefix(r.Link, info.URL+"/") {
		t.Errorf("the link %s is valid for %s", r.Link, left)
	}
	told := &notices{}
	ownersKey := redeem(t, info, r)
	owner := client(t, info, "operator", ownersKey, told)
	if _, err := owner.SetRole(t.Context(), "vera", "auditor"); err != nil {
		t.Errorf("the recovered owner may not do everything: %v", err)
	}
	wantTold := func(who *notices, id watchword.SubjectID, from time.Time) {
		t.Helper()
		for _, n := range who.take() {
			if n.Kind == watchword.NoticeRecovery && n.Object == id && !n.At.Before(from.Truncate(time.Second)) {
				return
			}
		}
		t.Errorf("an operator was not told of the recovery of %q", id)
	}
	wantTold(told, "operator", r.Expires.Add(-10*time.Minute))
	if !strings.Contains(log.String(), "a link for an owner was made on this machine") || strings.Contains(log.String(), r.Code) {
		t.Error("the process log does not have it, or has the code")
	}
	stop()

	// Without a server, in the folder: another owner.
	r, err = server.RecoverOperator(t.Context(), c, "carla", o)
	check(t, err)
	info, stop = runAt(t, c, o)
	if !strings.Contains(log.String(), "a notice is not acknowledged") {
		t.Error("the start does not repeat the notice")
	}
	told = &notices{}
	carla := client(t, info, "carla", redeem(t, info, r), told)
	all, err := carla.Notices(t.Context())
	check(t, err)
	if len(all.Notices) != 2 || all.Notices[0].Object != "operator" || all.Notices[1].Object != "carla" || len(all.Endings) != 0 {
		t.Errorf("notices %+v", all)
	}
	wantTold(told, "carla", r.Expires.Add(-10*time.Minute))
	// Neither the one whom it is about nor an owner whom she added hides it, and an acknowledgement does not end another notice than the one that was read.
	first, notice := all.Notices[0], all.Notices[1] // first is of another object
	wantCode(t, "acknowledged by the recovered owner", carla.AcknowledgeNotice(t.Context(), notice), watchword.Denied)
	added, err := carla.CreateOperator(t.Context(), "eve", "owner", 0)
	check(t, err)
	eve := client(t, info, "eve", redeem(t, info, server.Recovery{Operator: "eve", Code: added.Enrollment.Code}), nil)
	wantCode(t, "acknowledged by a later owner", eve.AcknowledgeNotice(t.Context(), notice), watchword.Denied)
	owner = client(t, info, "operator", ownersKey, nil)
	for _, other := range []api.Notice{{Kind: notice.Kind, Object: "operator", At: notice.At.Add(time.Hour)}, {Kind: notice.Kind, Object: notice.Object, At: notice.At.Add(-time.Second)}} {
		wantCode(t, "another notice", owner.AcknowledgeNotice(t.Context(), other), watchword.Conflict)
	}
	check(t, owner.AcknowledgeNotice(t.Context(), notice))
	wantCode(t, "acknowledged twice", owner.AcknowledgeNotice(t.Context(), notice), watchword.NotFound)
	told.take()
	_, err = carla.ServerKeys(t.Context())
	check(t, err)
	if rest := told.take(); len(rest) != 1 || rest[0].Object != first.Object || !rest[0].At.Equal(first.At.Truncate(time.Second)) { // the second recovery did not replace it
		t.Errorf("told after it was acknowledged: %+v", rest)
	}
	stop()
	var through []string
	for _, e := range entriesOf(t, data, audit.OperatorRecover) {
		through = append(through, e.Object+" "+e.Data["through"])
	}
	if !slices.Equal(through, []string{"operator socket", "carla folder"}) {
		t.Errorf("the log has %v", through)
	}
}

// What a recovery needs: the key-encryption key, and the folder's lock where no socket answers.
func TestRecoveryNeedsTheFolder(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	c := config(t, data)
	once(t, c)
	kek := filepath.Join(data, "keys", "kek")
	check(t, os.Rename(kek, kek+".away"))
	if r, err := server.RecoverOperator(t.Context(), c, "carla", quiet); err == nil {
		t.Errorf("without the key-encryption key: %+v", r)
	}
	check(t, os.Rename(kek+".away", kek))
	if n := len(entriesOf(t, data, audit.OperatorRecover)); n != 0 {
		t.Errorf("%d entries of what was refused", n)
	}
	s, err := server.New(t.Context(), c, quiet) // holds the lock, and does not answer yet
	check(t, err)
	check(t, os.Remove(filepath.Join(data, localsocket.Name)))
	_, err = server.RecoverOperator(t.Context(), c, "carla", quiet)
	wantCode(t, "in a folder in use, without a socket", err, watchword.FolderInUse)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil && !errors.Is(err, os.ErrNotExist) { // the socket is not there to be removed
		t.Error(err)
	}
}

func wantCode(t *testing.T, what string, err error, want watchword.Code) {
	t.Helper()
	if got := watchword.CodeOf(err); got != want {
		t.Errorf("%s: got %q (%v), want %q", what, got, err, want)
	}
}
