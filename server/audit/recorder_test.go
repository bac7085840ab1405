package audit_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
)

type memory struct {
	mu sync.Mutex
	es []audit.Entry
}

func (m *memory) AddEntry(_ context.Context, es ...audit.Entry) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.es = append(m.es, es...)
	return nil
}

func TestRefusalFloodIsBoundedAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		r := audit.NewRecorder(m)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		const flood = 5000
		for range flood {
			r.Refused(audit.Entry{Tenant: watchword.DefaultTenant, Kind: audit.RequestRefuse, Outcome: audit.Refused, Code: watchword.Denied})
		}
		time.Sleep(3 * time.Second) // of the bubble's clock
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		refused, counted := 0, 0
		for _, e := range m.es {
			switch e.Kind {
			case audit.RequestRefuse:
				refused++
			case audit.RefusalsOverflow:
				n := 0
				for _, c := range e.Data["left_out"] {
					n = n*10 + int(c-'0')
				}
				counted += n
			}
		}
		if refused+counted != flood || refused > 1024 || refused == 0 {
			t.Errorf("%d written, %d counted, of %d", refused, counted, flood)
		}
	})
}

func TestEntryRoundTrip(t *testing.T) {
	e := audit.Entry{
		Tenant: "t", At: time.Date(2026, 11, 24, 1, 2, 3, 4_567_890, time.UTC), Kind: audit.PolicyApply, Actor: "alice", Object: "lamps", Outcome: audit.Done,
		Data: map[string]string{"b": "2", "a": "1"},
	}
	one, err := e.Body()
	if err != nil {
		t.Fatal(err)
	}
	back, err := audit.Parse(7, one)
	if err != nil || back.Seq != 7 || !back.At.Equal(e.At.Truncate(time.Millisecond)) {
		t.Fatalf("%+v %v", back, err)
	}
	two, err := back.Body()
	if err != nil || string(one) != string(two) {
		t.Errorf("%s\n%s %v", one, two, err)
	}
}

// A flood of one subject does not hide the entries of others, and a flood of many does not fill the disk.
func TestAFloodDoesNotHideOtherSubjects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		r := audit.NewRecorder(m)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		refuse := func(actor, remote string) {
			r.Refused(audit.Entry{
				Tenant: watchword.DefaultTenant, Kind: audit.RequestRefuse, Actor: watchword.SubjectID(actor), Outcome: audit.Refused, Code: watchword.Denied, Data: map[string]string{"remote": remote},
			})
		}
		const seconds = 100
		for range seconds {
			for i := range 1000 {
				refuse("", "10.0.0."+string(rune('0'+i%10)))
			}
			refuse("lamp-1", "10.0.1.1")
			synctest.Wait()
			time.Sleep(time.Second)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		lamp, strangers := 0, 0
		for _, e := range m.es {
			if e.Kind == audit.RequestRefuse && e.Actor == "lamp-1" {
				lamp++
			} else if e.Kind == audit.RequestRefuse {
				strangers++
			}
		}
		if lamp < seconds/2 || strangers > 1000+50*(seconds+1) {
			t.Errorf("of %d refusals of the lamp %d are there, and %d of unauthenticated clients", seconds, lamp, strangers)
		}
	})
}
