package main

import (
	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/statuspage"
)

// adminSources are what the pages of the admin port show.
type adminSources struct {
	plane    *controlplane.Plane
	problems *controlplane.Problems
	servers  *servers
	ready    *readiness
	log      *recentLog
	options  serveOptions
}

// addPages adds the pages about gateways and Envoys. Call it before run.
func (a *admin) addPages(s adminSources) {
	a.addEnvoys(s.servers.xds.Nodes)
	page := statuspage.New(s.state)
	page.AddTo(a.mux)
	a.addStatus(page.State)
	a.addGRPC(s)
	a.addDebug(debugHandlers{s.plane, s.log, s.options})
}
