package mqtt

import "github.com/watchword-iot/watchword/internal/quota"

// newWillQuota returns the quota of the bytes of wills: of each subject, and of all.
func newWillQuota(o *Options) *quota.Ledger[quota.Key] {
	return quota.New[quota.Key](quota.Resource{
		Name: "wills", Unit: "bytes",
		Subject: quota.Bound{Max: o.SubjectWillBytes, Name: "limits.subject_will_bytes"},
		Total:   quota.Bound{Max: o.WillBytes, Name: "limits.will_bytes"},
	})
}

// reserveQuota charges a new will; nil costs nothing. Code: busy.
func (ws *willStore) reserveQuota(w *will, of quota.Key) error {
	if w == nil {
		return nil
	}
	w.account = of
	return ws.quota.Reserve(of, w.size())
}

// releaseQuota releases the charge of a will that was removed or never added.
func (ws *willStore) releaseQuota(w *will) {
	if w != nil {
		ws.quota.Release(w.account, w.size())
	}
}
