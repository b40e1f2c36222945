package probe

import (
	"context"
	"net/netip"
	"slices"
	"sync"
)

// Report is the result of a probe.
type Report struct {
	Target    string   `json:"target"`
	UserAgent string   `json:"user_agent"`
	Results   []Result `json:"results"` // one for each address, at least one
}

// Result is what one address of the target is.
type Result struct {
	Address    netip.AddrPort `json:"address"`
	Source     netip.Addr     `json:"source"` // the client that the headers named
	Conclusion Conclusion     `json:"conclusion"`
	Meaning    Meaning        `json:"meaning"`
	Answers    []Answer       `json:"answers"`
}

// EnvoyRefusedHeader reports whether an Envoy answered a PROXY header with its own 400. A server in front of it that reads
// HTTP answers this itself.
func (r Result) EnvoyRefusedHeader() bool {
	return slices.ContainsFunc(r.Answers, func(x Answer) bool {
		return (x.Sent == v1 || x.Sent == v2) && x.byEnvoy() && x.Status == 400 && !x.Service
	})
}

// Run probes each address that the target has, one after the other. It makes at most twenty connections to each,
// which takes four timeouts and two seconds at most. The error is one of Check, or of the name's lookup.
func (o *Options) Run(ctx context.Context) (*Report, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	addresses, err := o.addresses(ctx)
	if err != nil {
		return nil, err
	}
	report := &Report{Target: o.Target, UserAgent: o.UserAgent()}
	for _, address := range addresses {
		result, err := o.probe(ctx, address)
		if err != nil {
			return nil, err
		}
		report.Results = append(report.Results, result)
	}
	return report, ctx.Err()
}

// probe probes one address, without TLS and then with it, if necessary.
func (o *Options) probe(ctx context.Context, target netip.AddrPort) (Result, error) {
	beginnings, err := o.beginningsFor(target)
	if err != nil {
		return Result{}, err
	}
	r := Result{Address: target, Source: o.claimed(target.Addr())}
	if !o.TLS {
		r.Answers = o.round(ctx, target, beginnings, false)
		r.Conclusion = conclude(r.Answers)
	}
	if o.TLS || mayNeedTLS(r.Conclusion, r.Answers) {
		secure := o.round(ctx, target, beginnings, true)
		if c := conclude(secure); o.TLS || c.Finding.known() || c.Finding == ClosesLater && r.Conclusion.Finding == ClosesAll {
			r.Conclusion = c
		}
		r.Answers = append(r.Answers, secure...)
	}
	r.Meaning = o.meaning(r)
	return r, nil
}

// round makes one connection without a header, and then the others at the same time. It makes no more if the first
// one is not established.
func (o *Options) round(ctx context.Context, target netip.AddrPort, beginnings []beginning, overTLS bool) []Answer {
	answers := make([]Answer, len(beginnings))
	answers[0] = o.exchange(ctx, target, beginnings[0], overTLS)
	if answers[0].notConnected() {
		return answers[:1]
	}
	var open sync.WaitGroup
	for i := 1; i < len(beginnings); i++ {
		open.Go(func() { answers[i] = o.exchange(ctx, target, beginnings[i], overTLS) })
	}
	open.Wait()
	return answers
}
