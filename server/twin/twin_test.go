package twin_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/twin"
)

func TestAConfigurationIsReplacedUnderItsVersion(t *testing.T) {
	now := time.Unix(9, 0)
	for _, c := range []struct {
		name               string
		version, ifVersion int64
		want               watchword.Code
	}{
		{"any version", 4, -1, ""},
		{"the version of now", 4, 4, ""},
		{"an older version", 4, 3, watchword.PreconditionFailed},
		{"a later version", 4, 5, watchword.PreconditionFailed},
		{"never set", 0, 0, ""},
		{"set meanwhile", 1, 0, watchword.PreconditionFailed},
	} {
		got, err := twin.Twin{ConfigVersion: c.version, State: []byte("s"), StateVersion: 2}.Configure([]byte("c"), c.ifVersion, now)
		if watchword.CodeOf(err) != c.want || err == nil && (string(got.Config) != "c" || got.ConfigVersion != c.version+1 || !got.ConfigAt.Equal(now) || got.StateVersion != 2) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
	got := twin.Twin{ConfigVersion: 4, StateVersion: 2}.Report([]byte("s"), "lamp-1", 3, now)
	if got.StateVersion != 3 || got.ReportedBy != "lamp-1" || got.ReportedByIncarnation != 3 || !got.StateAt.Equal(now) || got.ConfigVersion != 4 {
		t.Errorf("a report: %+v", got)
	}
}

// slowStore is a store whose first write of a document is stuck after it is written, until it is released.
type slowStore struct {
	twin.Store
	mu      sync.Mutex
	writes  []string
	release chan struct{}
}

func (s *slowStore) write(what string) {
	s.mu.Lock()
	s.writes = append(s.writes, what)
	n := len(s.writes)
	s.mu.Unlock()
	if n == 1 {
		<-s.release
	}
}

func (s *slowStore) ReportState(_ context.Context, _ watchword.TenantID, _ watchword.AuthorityVersions, _ watchword.SubjectID, state []byte, _ time.Time) error {
	s.write("stored " + string(state))
	return nil
}

func (s *slowStore) SetConfig(_ context.Context, _ watchword.TenantID, _ watchword.SubjectID, config []byte, _ int64, _ time.Time, _ audit.Entry) (twin.Twin, error) {
	s.write("stored " + string(config))
	return twin.Twin{Config: config}, nil
}

// plain seals nothing.
type plain struct{}

func (plain) Seal(_ string, b []byte) ([]byte, error) { return b, nil }
func (plain) Open(_ string, b []byte) ([]byte, error) { return b, nil }

// A document is published before the next one of the same kind and device is stored. Nothing else waits for it.
func TestADocumentIsPublishedBeforeTheNextIsStored(t *testing.T) {
	type act func(ctx context.Context, svc *twin.Service, device watchword.SubjectID, doc string, publish func() error) error
	var report act = func(ctx context.Context, svc *twin.Service, device watchword.SubjectID, doc string, publish func() error) error {
		return svc.ReportState(ctx, "t", watchword.AuthorityVersions{}, device, []byte(doc), time.Time{}, publish)
	}
	var configure act = func(ctx context.Context, svc *twin.Service, device watchword.SubjectID, doc string, publish func() error) error {
		_, err := svc.SetConfig(ctx, "t", device, []byte(doc), -1, time.Time{}, audit.Entry{}, func(tw twin.Twin) error {
			if string(tw.Config) != doc {
				t.Errorf("the configuration %q is published as %q", doc, tw.Config)
			}
			return publish()
		})
		return err
	}
	for name, c := range map[string]struct{ slow, other act }{"state": {report, configure}, "configuration": {configure, report}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := &slowStore{release: make(chan struct{})}
				svc := twin.New(st, plain{})
				do := func(ctx context.Context, f act, device watchword.SubjectID, doc string, result error) error {
					return f(ctx, svc, device, doc, func() error {
						st.write("published " + doc)
						return result
					})
				}
				broken := errors.New("not published")
				var wg sync.WaitGroup
				wg.Go(func() {
					if err := do(t.Context(), c.slow, "lamp-1", "1", broken); err != broken {
						t.Error("the error of publish:", err)
					}
				})
				synctest.Wait()
				wg.Go(func() {
					if err := do(t.Context(), c.slow, "lamp-1", "2", nil); err != nil {
						t.Error(err)
					}
				})
				gone, cancel := context.WithCancel(t.Context())
				wg.Go(func() {
					if err := do(gone, c.slow, "lamp-1", "3", nil); err != context.Canceled {
						t.Error("of a caller that is gone:", err)
					}
				})
				synctest.Wait()
				cancel()
				synctest.Wait()
				if err := errors.Join(do(t.Context(), c.slow, "lamp-2", "other device", nil), do(t.Context(), c.other, "lamp-1", "other document", nil)); err != nil {
					t.Error(err)
				}
				close(st.release)
				wg.Wait()
				want := []string{"stored 1", "stored other device", "published other device", "stored other document", "published other document", "published 1", "stored 2", "published 2"}
				if !slices.Equal(st.writes, want) {
					t.Errorf("%q, want %q", st.writes, want)
				}
			})
		})
	}
}
