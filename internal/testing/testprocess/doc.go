// Package testprocess runs the real parts that tests need: where make tools
// has put them, and processes that end with the test.
package testprocess
