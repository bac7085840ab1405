// Package httpapi is the front door: the HTTPS API, the OAuth endpoints and the
// problem documents. In come requests with papers, out go answers and live
// streams, each of which is a session of the guard. It refuses whoever shows no
// papers that count, and says no more about it than helps the honest.
package httpapi
