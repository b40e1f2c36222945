// Package chaos runs a datacenter of real parts under load, makes random faults and
// changes in it, and wants no client to notice: `make chaos`. docs/chaos.md says how
// to read its output.
//
// What the faults are and when they come is decided before anything runs (plan.go), so
// a seed always gives the same ones. Everything else has the build tag e2e, and needs
// root.
package chaos
