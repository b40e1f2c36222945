package main

import (
	"net/http"
	"time"

	"github.com/usherproxy/usher/internal/configdir"
	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/redaction"
	"github.com/usherproxy/usher/internal/status"
)

// started is when the process began.
var started = time.Now()

// addStatus adds status.Path. Call it before run.
func (a *admin) addStatus(state func() status.State) {
	a.mux.HandleFunc("GET "+status.Path, func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, state()) })
}

// state returns what this Usher knows now.
func (s adminSources) state() status.State {
	clients := s.servers.xds.Clients()
	gateways, envoys := s.plane.Status(clients)
	state := status.State{
		Time: time.Now(), Usher: s.ready.usher(), Source: s.ready.sourceStatus(),
		Gateways: gateways, Envoys: envoys, Problems: []status.Problem{},
		Changes: s.plane.Changes(clients),
	}
	for _, p := range s.problems.Current() {
		state.Problems = append(state.Problems, problemStatus(p))
	}
	return state
}

// problemStatus returns a problem without secrets: it may quote what an administrator wrote.
func problemStatus(p controlplane.Reported) status.Problem {
	return status.Problem{
		Gateway: p.Gateway, Severity: p.Severity, Where: redaction.Text(p.Where), What: redaction.Text(p.What),
	}
}

// usher returns which Usher this is, and whether it is ready.
func (r *readiness) usher() status.Usher {
	build := thisBuild()
	u := status.Usher{Version: build.Version, Commit: build.Commit, GoVersion: build.GoVersion, Started: started, Ready: true, Warnings: r.warnings()}
	if err := r.Ready(); err != nil {
		u.Ready, u.Reason = false, err.Error()
	}
	return u
}

// sourceStatus returns where this Usher reads gateways, and whether that answers.
func (r *readiness) sourceStatus() status.Source {
	s := status.Source{Type: status.Consul, Answers: true}
	if _, files := r.source.(*configdir.Source); files {
		s.Type = status.Files
	}
	if of, ok := r.source.(interface{ Address() string }); ok {
		s.Address = of.Address()
	}
	if since, err := r.checkSource(); err != nil {
		s.Answers, s.Error, s.Since = false, err.Error(), since
	}
	return s
}
