// Package monitoring has the tests of the Prometheus rules and the Grafana dashboard of charts/usher, with the libraries of
// Prometheus and Grafana. It is a module for itself, because nothing else needs them.
package monitoring
