// Package bench measures what the product promises, beside the bare work it
// cannot do without and beside its peers, in the same run. The last results, with
// machine and date, lie in results/. It holds benchmarks alone; load/ is the
// program for what needs a whole server.
package bench
