// Package probe finds out what a listener does with PROXY headers: it opens a few connections to it, begins them in
// different ways, and concludes from the answers.
//
// Options.Run sends, an Answer is what came back on one connection, conclude is a pure function from the answers to
// a Conclusion, and Report.Text says it in words.
//
// What Envoy does with each beginning: e2e/testdata/proxyprotocol.txt. The format of the headers:
// https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt.
package probe
