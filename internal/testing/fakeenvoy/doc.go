// Package fakeenvoy is a fake Envoy: the client's side of an aggregated discovery
// stream over a real gRPC connection. The delta and the state-of-the-world
// protocol hide behind one vocabulary, so that a test tells one story for both.
//
// The fake does nothing by itself: it acknowledges, subscribes and rejects only
// when it is told to. Lean is for those who need hundreds of Envoys: a codec for
// streams of their own, which leaves resources encoded.
package fakeenvoy
