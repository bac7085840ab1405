// Package api has the request and response bodies of the HTTPS API as Go types: httpapi writes them, sdk/admin, sdk/device,
// sdk/verify and the CLI read them, and OpenAPI is made from them. It has no logic and refuses nothing: httpapi checks what
// the tags maxLength, minLength, maxItems, minItems, minimum, maximum and enum say; doc is for OpenAPI. It is compiled into
// other people's programs, and imports package watchword and the standard library alone.
//
// Times are RFC 3339 in UTC. A pointer to a time is nil where the member is absent: the event has not happened. Lists come
// in pages: where NextPageToken is not empty, it goes into the query parameter page_token of the request for the next page.
// A page has at most page_size items (1 to 1000; 100 is the default), and fewer where they would exceed 512 KiB.
//
// Not here: what is signed (tokens, trust bundles, receipts: package token), files (exports: package audit; evidence:
// package command), payloads of MQTT, and what standards define for all servers alike (JWK set, metadata: RFC 7517, 8414,
// 9728). internal/rest, below this package, reads the members of tokens and problems that it needs by itself.
package api
