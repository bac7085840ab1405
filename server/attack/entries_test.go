package attack_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"testing"
)

// The log is read in small steps, since entries may be large: no page leaves one out, or gives one twice.
func TestLogPagesHaveEveryEntryOnce(t *testing.T) {
	srv := serve(t, nil)
	token := srv.narrowed(srv.operatorSigner(), srv.admin.Subject(), "")
	lengthen(t, srv, 70, 200)
	lengthen(t, srv, 30, 60<<10)
	lengthen(t, srv, 170, 200)
	for _, order := range []string{"oldest", "newest"} {
		for _, limit := range []int{1000, 100, 64, 63} {
			t.Run(fmt.Sprintf("%s, %d", order, limit), func(t *testing.T) {
				q := url.Values{"page_size": {fmt.Sprint(limit)}, "kind": {"policy.*"}}
				if order == "newest" {
					q.Set("order", order)
				}
				var seqs []int64
				for pages := 0; ; pages++ {
					if pages > 100 {
						t.Fatal("100 pages, and no end")
					}
					a := srv.request(http.MethodGet, "/v1/audit?"+q.Encode(), token, "")
					var page struct {
						Entries []struct{ Seq int64 }
						Next    string `json:"next_page_token"`
					}
					must(t, json.Unmarshal([]byte(a.body), &page))
					if len(page.Entries) > limit || len(a.body) > 600<<10 {
						t.Errorf("a page has %d entries, %d bytes", len(page.Entries), len(a.body))
					}
					for _, e := range page.Entries {
						seqs = append(seqs, e.Seq)
					}
					if page.Next == "" {
						break
					}
					q.Set("page_token", page.Next)
				}
				if order == "newest" {
					slices.Reverse(seqs)
				}
				if !slices.IsSorted(seqs) || len(slices.Compact(slices.Clone(seqs))) != len(seqs) || len(seqs) != 270 {
					t.Errorf("%d entries came, want 270: %v", len(seqs), seqs)
				}
			})
		}
	}
}
