// Package bench measures the product beside the minimal work that it cannot avoid, and beside other
// implementations, in the same run. The last results, with machine and date, are in results/. It
// contains benchmarks only; load/ is the program for measurements that need a whole server.
package bench
