package httpapi

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
)

// anyDevice is a directory in which every id is an active device that may do everything.
type anyDevice struct{ set *policy.Set }

func (d anyDevice) Principal(_ context.Context, t watchword.TenantID, id watchword.SubjectID) (*session.Principal, error) {
	return session.NewPrincipal(&watchword.Subject{
		Tenant: t, ID: id, Kind: watchword.Device, State: watchword.Active, Incarnation: 1,
		Keys: []watchword.Key{{ID: "k", Purpose: watchword.Sign, State: watchword.KeyActive}},
	}, d.set), nil
}

func (d anyDevice) Policies(context.Context, watchword.TenantID) (*policy.Set, error) {
	return d.set, nil
}

func (anyDevice) Refresh(context.Context, watchword.TenantID, watchword.SubjectID, string, watchword.KeyID) error {
	return nil
}

func (anyDevice) TokenSubject(context.Context, watchword.TenantID, string) (watchword.SubjectID, error) {
	return "", nil
}

// countingBroker has offline sessions in order of subject and client identifier, and counts those that are read.
type countingBroker struct {
	Broker
	offline []session.State
	read    int
}

func (b *countingBroker) SessionState(_ watchword.TenantID, client string) (session.State, bool) {
	b.read++
	return session.State{}, false
}

func (b *countingBroker) OfflineStates(_ watchword.TenantID, from session.OfflinePlace, only bool, n int) (page []session.State, next *session.OfflinePlace) {
	at, _ := slices.BinarySearchFunc(b.offline, from, func(s session.State, p session.OfflinePlace) int {
		return cmp.Or(cmp.Compare(s.Subject, p.Subject), cmp.Compare(s.Client, p.Client))
	})
	for _, s := range b.offline[at:] {
		if only && s.Subject != from.Subject {
			break
		}
		if len(page) == n {
			return page, &session.OfflinePlace{Subject: s.Subject, Client: s.Client}
		}
		page = append(page, s)
		b.read++
	}
	return page, nil
}

// The pages of the list of sessions have each session once, in order, with each filter; and a page reads as many sessions as it
// has, or as many as one page may look at, however many sessions there are.
func TestSessionPagesReadWhatTheyShow(t *testing.T) {
	const offline, live = 9000, 6000
	now := time.Now()
	guard := session.NewGuard(anyDevice{policy.NewSet()}, session.GuardOptions{})
	b := &countingBroker{}
	a := &API{Dependencies: Dependencies{Guard: guard, Broker: b, Options: Options{Now: func() time.Time { return now }}}}
	for n := range offline {
		b.offline = append(b.offline, session.State{ID: watchword.SessionID(fmt.Sprint("ses_", n)), Subject: watchword.SubjectID(fmt.Sprintf("lamp-%05d", n/2)), Client: fmt.Sprint("lamp-", n/2, "/", n%2)})
	}
	for n := range live {
		transport := "mqtt"
		if n%1000 == 999 {
			transport = "sse"
		}
		_, err := guard.Open(t.Context(), session.Credentials{
			Tenant: tenant, Subject: watchword.SubjectID(fmt.Sprintf("lamp-%05d", n/2)), Incarnation: 1, Key: "k", JTI: fmt.Sprint(n), Issued: now, Expires: now.Add(time.Hour),
		}, session.Options{Transport: transport})
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, x := range map[string]struct {
		f             sessionFilter
		size          int
		live, offline int // sessions in all
		most          int // offline sessions and Session States that one page reads
		pages         int
	}{
		"all":                         {sessionFilter{}, 1000, live, offline, 1000 + 2*sessionBatch, 16},
		"a short page":                {sessionFilter{online: "false"}, 1, 0, offline, 2, offline},
		"of one subject":              {sessionFilter{subject: "lamp-02000"}, 100, 2, 2, 2, 1},
		"live ones of one subject":    {sessionFilter{subject: "lamp-02000", online: "true"}, 100, 2, 0, 0, 1},
		"offline ones of one subject": {sessionFilter{subject: "lamp-04000", online: "false"}, 1, 0, 2, 2, 2},
		"of a subject that has none":  {sessionFilter{subject: "lamp-99999"}, 100, 0, 0, 0, 1},
		"live ones of one transport":  {sessionFilter{transport: "sse"}, 100, 6, 0, 0, 2}, // the first page ends with sessionsExamined
		"a transport of offline ones": {sessionFilter{transport: "mqtt", online: "false"}, 1000, 0, offline, 1000 + 2*sessionBatch, 10},
		"another one of offline ones": {sessionFilter{transport: "poll", online: "false"}, 1000, 0, 0, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var ids, clients []string
			token, count := "", 0
			for {
				b.read = 0
				l, o, next, err := a.sessionPage(tenant, x.f, Page{Size: x.size, Token: token})
				if err != nil || len(l)+len(o) > x.size {
					t.Fatalf("a page of %d and %d sessions: %v", len(l), len(o), err)
				}
				if b.read > x.most {
					t.Errorf("page %d read %d sessions, want at most %d", count, b.read, x.most)
				}
				for _, s := range l {
					ids = append(ids, string(s.ID))
				}
				for _, s := range o {
					clients = append(clients, string(s.Subject)+" "+s.MQTT.Client)
				}
				if count++; next == "" {
					break
				}
				token = next
			}
			if len(ids) != x.live || len(clients) != x.offline || !slices.IsSorted(ids) || !slices.IsSorted(clients) ||
				len(slices.Compact(ids)) != x.live || len(slices.Compact(clients)) != x.offline {
				t.Errorf("%d live and %d offline sessions, want %d and %d, in order and each once", len(ids), len(clients), x.live, x.offline)
			}
			if count > x.pages {
				t.Errorf("%d pages, want at most %d", count, x.pages)
			}
		})
	}
	if l, o, next, err := a.sessionPage("other", sessionFilter{online: "true"}, Page{Size: 10}); err != nil || len(l)+len(o) > 0 || next != "" {
		t.Errorf("another tenant: %d and %d sessions, %v", len(l), len(o), err)
	}
}
