// Package charts has the Helm charts, and their tests.
package charts

//go:generate go run ../tools/chart-doc usher/values.yaml ../tools/chart-doc/head.md usher/README.md
