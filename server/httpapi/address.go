package httpapi

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/server/keyring"
)

// url returns the public URL of a tenant, under which its addresses are, without a trailing slash.
func (a *API) url(t watchword.TenantID) string {
	if set := a.Auth.Issuers(); set.Moved() {
		return set.Current(t)
	}
	return a.PublicURL + watchword.TenantPath(t)
}

// issuerAt returns the issuer identifier that the metadata at a request's address must state (RFC 8414 §3.3), and the URL that goes
// with it: an accepted former one if the request went to its host, and else the current one.
func (a *API) issuerAt(r *http.Request) (issuer, at string) {
	t := tenantOf(r)
	for _, i := range a.Auth.Issuers().Accepted(t, a.Now())[1:] {
		if u, err := url.Parse(i); err == nil && strings.EqualFold(u.Host, strings.TrimSuffix(r.Host, ":443")) {
			return i, i
		}
	}
	return a.Auth.Issuer(t), a.url(t)
}

func (a *API) addressRoutes() {
	type addressOut struct{ Body api.Address }
	register(a, operation{method: http.MethodGet, path: "/v1/address", summary: "Show the server's address and the former ones"},
		func(ctx context.Context, c *caller, _ *struct{}) (*addressOut, error) {
			body, err := a.address(ctx, c.Tenant())
			return &addressOut{body}, err
		})
	type moveIn struct{ Body api.MoveAddressRequest }
	register(a, operation{method: http.MethodPost, path: "/v1/address/move", summary: "Move the server to another address: devices are told, and the former one is accepted for a time"},
		func(ctx context.Context, c *caller, in *moveIn) (*addressOut, error) {
			overlap := keyring.DefaultOverlap
			if in.Body.Overlap != "" {
				var err error
				if overlap, err = time.ParseDuration(in.Body.Overlap); err != nil {
					return nil, watchword.RefuseField("overlap", "must be a duration such as 720h")
				}
			}
			u, err := a.CheckAddress(in.Body.URL)
			if err != nil {
				return nil, err
			}
			if err := a.Keys.MoveIssuer(ctx, c.actor.Actor, u, overlap, a.Now()); err != nil {
				return nil, err
			}
			body, err := a.address(ctx, c.Tenant())
			return &addressOut{body}, err
		})
}

// address is for the default tenant alone, as the routes are.
func (a *API) address(ctx context.Context, t watchword.TenantID) (out api.Address, err error) {
	set := a.Auth.Issuers()
	out = api.Address{URL: a.url(t), Issuer: set.URL(), MQTTS: a.MQTTS()}
	if !set.Moved() {
		return out, nil
	}
	seen, unseen, err := a.IssuerUse(ctx, t)
	if err != nil {
		return out, err
	}
	out.Devices = &api.AddressDevices{Moved: seen[out.Issuer], Unseen: unseen}
	for _, f := range set.Past() {
		out.Former = append(out.Former, api.FormerAddress{Issuer: string(f.Issuer), AcceptedUntil: f.Until.UTC(), Devices: seen[string(f.Issuer)]})
	}
	return out, nil
}
