// Package api has the request and response bodies of the HTTPS API as Go types: httpapi writes them, sdk/admin, sdk/device,
// sdk/verify and the CLI read them, and OpenAPI is generated from them. It has no logic and refuses nothing: httpapi
// enforces the tags maxLength, minLength, maxItems, minItems, minimum, maximum and enum; doc is for OpenAPI. It is compiled
// into other people's programs, and imports only package watchword and the standard library.
//
// Times are RFC 3339 in UTC. A pointer to a time is nil if the member is absent: the event has not happened. Lists have
// pages: if NextPageToken is not empty, it is the query parameter page_token of the request for the next page. A page has
// at most page_size items (1 to 1000; 100 is the default), and fewer if they would exceed 512 KiB.
//
// Not here: signed content (tokens, trust bundles, receipts: package token), files (exports: package audit; evidence:
// package command), payloads of MQTT, and types that standards define for all servers alike (JWK set, metadata: RFC 7517,
// 8414, 9728). internal/rest, below this package, parses the members of tokens and problems that it needs itself.
package api
