package twin

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
)

// ReportCost is what a reported state counts against limits.control_rate of the subject that reports it, over HTTP and MQTT: it is sealed and
// written.
const ReportCost = 10

// Store is what it needs from the store. Documents come sealed.
type Store interface {
	// SetFunctions replaces what a device announced. Code: busy, where b has moved.
	SetFunctions(ctx context.Context, t watchword.TenantID, b watchword.AuthorityVersions, device watchword.SubjectID, fs []Function, now time.Time) error
	Functions(ctx context.Context, t watchword.TenantID, device watchword.SubjectID) ([]Function, error)
	Twin(ctx context.Context, t watchword.TenantID, device watchword.SubjectID) (Twin, error)
	ReportedStates(ctx context.Context, t watchword.TenantID, after watchword.SubjectID, limit int) ([]Twin, error)
	// ReportState replaces the state, and records its reporter. Code: busy, if b has changed.
	ReportState(ctx context.Context, t watchword.TenantID, b watchword.AuthorityVersions, device watchword.SubjectID, state []byte, now time.Time) error
	SetConfig(ctx context.Context, t watchword.TenantID, device watchword.SubjectID, config []byte, ifVersion int64, now time.Time, e audit.Entry) (Twin, error)
}

// Sealer encrypts stored data.
type Sealer interface {
	Seal(context string, plaintext []byte) ([]byte, error)
	Open(context string, sealed []byte) ([]byte, error)
}

// Service keeps twins, sealed at rest. It is safe for concurrent use.
type Service struct {
	store     Store
	sealer    Sealer
	documents documentLocks
}

// New returns a service over st.
func New(st Store, sealer Sealer) *Service { return &Service{store: st, sealer: sealer} }

func sealContext(field string, t watchword.TenantID, device watchword.SubjectID) string {
	return field + "/" + string(t) + "/" + string(device)
}

// Twin returns a device's twin in plaintext. Code: not_found.
func (svc *Service) Twin(ctx context.Context, t watchword.TenantID, device watchword.SubjectID) (Twin, error) {
	tw, err := svc.store.Twin(ctx, t, device)
	if err != nil {
		return tw, err
	}
	return svc.open(tw, t, device)
}

func (svc *Service) open(tw Twin, t watchword.TenantID, device watchword.SubjectID) (Twin, error) {
	for field, doc := range map[string]*[]byte{"config": &tw.Config, "state": &tw.State} {
		if *doc == nil {
			continue
		}
		plain, err := svc.sealer.Open(sealContext(field, t, device), *doc)
		if err != nil {
			return Twin{}, err
		}
		*doc = plain
	}
	return tw, nil
}

// ReportedStates returns up to limit reported states in plaintext, of devices whose ids are
// above after, in their order.
func (svc *Service) ReportedStates(ctx context.Context, t watchword.TenantID, after watchword.SubjectID, limit int) ([]Twin, error) {
	ts, err := svc.store.ReportedStates(ctx, t, after, limit)
	for i := range ts {
		if err != nil {
			break
		}
		ts[i], err = svc.open(ts[i], t, ts[i].Device)
	}
	return ts, err
}

// ReportState replaces the reported state, one JSON object, and then calls publish, whose error it returns. b is what the
// report was decided on. States of one device are stored and published one after the other: the last one published is
// the one stored.
func (svc *Service) ReportState(ctx context.Context, t watchword.TenantID, b watchword.AuthorityVersions, device watchword.SubjectID, state []byte, now time.Time, publish func() error) error {
	sealed, err := svc.sealer.Seal(sealContext("state", t, device), state)
	if err != nil {
		return err
	}
	return svc.documents.do(ctx, document{t, device, "state"}, func() error {
		if err := svc.store.ReportState(ctx, t, b, device, sealed, now); err != nil {
			return err
		}
		return publish()
	})
}

// SetConfig replaces the wanted configuration, one JSON object, and then calls publish with the new twin, under the rule of
// [Service.ReportState]. ifVersion is -1 for any, 0 for never set, else the current version. Codes: not_found,
// precondition_failed.
func (svc *Service) SetConfig(ctx context.Context, t watchword.TenantID, device watchword.SubjectID, config []byte, ifVersion int64, now time.Time, e audit.Entry, publish func(Twin) error) (tw Twin, err error) {
	sealed, err := svc.sealer.Seal(sealContext("config", t, device), config)
	if err != nil {
		return Twin{}, err
	}
	err = svc.documents.do(ctx, document{t, device, "config"}, func() error {
		stored, err := svc.store.SetConfig(ctx, t, device, sealed, ifVersion, now, e)
		if err != nil {
			return err
		}
		if tw, err = svc.open(stored, t, device); err != nil {
			return err
		}
		return publish(tw)
	})
	return tw, err
}

// SetFunctions replaces what the device announced. b is what that was decided on.
func (svc *Service) SetFunctions(ctx context.Context, t watchword.TenantID, b watchword.AuthorityVersions, device watchword.SubjectID, fs []Function, now time.Time) error {
	return svc.store.SetFunctions(ctx, t, b, device, fs, now)
}

// Functions returns them by name.
func (svc *Service) Functions(ctx context.Context, t watchword.TenantID, device watchword.SubjectID) ([]Function, error) {
	return svc.store.Functions(ctx, t, device)
}
