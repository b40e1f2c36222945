package consul

import (
	"cmp"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/usherproxy/usher/internal/gateway"
)

// Metrics count the queries to Consul and what becomes of them.
type Metrics struct {
	queries        *prometheus.CounterVec
	watches        *prometheus.GaugeVec
	failing        *prometheus.GaugeVec
	sharing        prometheus.Gauge
	up             prometheus.Gauge
	lastAnswer     prometheus.Gauge
	inUse          *prometheus.GaugeVec
	addressChanges prometheus.Counter
	authorizations *prometheus.CounterVec
	snapshots      prometheus.Counter
	signatures     *prometheus.CounterVec
	expiries       *prometheus.GaugeVec
	lifetimes      *prometheus.GaugeVec
	logins         *prometheus.CounterVec
	logouts        *prometheus.CounterVec
	saved          *prometheus.GaugeVec
	restored       *prometheus.GaugeVec
	saveFailures   prometheus.Counter
}

// NewMetrics returns metrics, and registers them with r unless r is nil. Each series whose labels are known exists from the
// start: from nothing to 1 is no increase for Prometheus.
func NewMetrics(r prometheus.Registerer) *Metrics {
	f := promauto.With(r)
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return f.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return f.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	}
	m := &Metrics{
		sharing: gauge("usher_consul_queries_sharing_connections", "Blocking queries that have no connection of their own, because plain HTTP allows too few. "+
			"Above 0, changes arrive up to five seconds late: use https:// for Consul.").WithLabelValues(),
		up: gauge("usher_consul_up",
			"1 if Consul answers a small query that Usher sends every few seconds, else 0. /readyz has the reason.").WithLabelValues(),
		lastAnswer: gauge("usher_consul_last_answer_timestamp_seconds",
			"When Consul last answered that query, in seconds since 1970. 0: not since Usher started.").WithLabelValues(),
		inUse: gauge("usher_consul_address_in_use", "1 for the address of Consul's HTTP API that Usher uses, 0 for each other one that it has.", "address"),
		addressChanges: counter("usher_consul_address_changes_total",
			"How often Usher has begun to use another address of Consul, because the one before did not answer.").WithLabelValues(),
		snapshots: counter("usher_consul_snapshots_total", "How often the configuration of a gateway has changed in Consul.").WithLabelValues(),
		queries: counter("usher_consul_queries_total",
			"Answers to queries, by type of query and outcome: ok, unreachable, denied (by ACLs), missing (404), "+
				"limited (too many connections or requests) or failed.", "kind", "outcome"),
		watches: gauge("usher_consul_watches", "Queries that are being watched, by type of query.", "kind"),
		failing: gauge("usher_consul_watches_failing",
			"Watched queries whose latest attempt failed, by type of query. Usher uses their last valid answers, and holds back what it has never read.", "kind"),
		authorizations: counter("usher_consul_authorizations_total",
			"Checks with Consul's ACLs whether an Envoy's token may use a gateway, by outcome: allowed, denied, "+
				"remembered (denied a moment ago), stale (Consul did not answer, and had allowed it before) or failed.", "outcome"),
		signatures: counter("usher_consul_signatures_total",
			"Certificates for clients that Consul was asked to sign, by outcome: ok, busy, refused or failed.", "outcome"),
		logins: counter("usher_consul_logins_total",
			"Logins at Consul's auth methods, by whom they are for (ingress-gateway: an Envoy with a bearer token; usher: Usher itself) "+
				"and outcome: ok, refused or failed; or lost, if Consul no longer knows the token of a login.", "component", "outcome"),
		logouts: counter("usher_consul_logouts_total",
			"Logouts of such logins, by outcome: ok or failed. Usher tries again after a failed one.", "component", "outcome"),
		saved: gauge("usher_state_saved_timestamp_seconds",
			"When the state of a gateway was last written to the state directory, in seconds since 1970. 0: it is not there yet.", "gateway"),
		saveFailures: counter("usher_state_write_failures_total", "Failed writes to the state directory.").WithLabelValues(),
		restored: gauge("usher_state_restored_timestamp_seconds",
			"When the oldest part of a gateway's configuration was saved, in seconds since 1970, while Usher uses the state directory because Consul has not answered since the start. 0: everything is from Consul.", "gateway"),
		expiries: gauge("usher_consul_certificate_expiry_timestamp_seconds",
			"When the certificate that a gateway has for its clients and for services expires, in seconds since 1970.", "gateway"),
		lifetimes: gauge("usher_consul_certificate_lifetime_seconds",
			"How long the certificate of usher_consul_certificate_expiry_timestamp_seconds is valid altogether.", "gateway"),
	}
	for _, component := range []string{envoyComponent, usherComponent} {
		for _, outcome := range []string{"ok", "refused", "failed", "lost"} {
			m.logins.WithLabelValues(component, outcome)
		}
		for _, outcome := range []string{"ok", "failed"} {
			m.logouts.WithLabelValues(component, outcome)
		}
	}
	for _, outcome := range []string{"allowed", "denied", "remembered", "stale", "failed"} {
		m.authorizations.WithLabelValues(outcome)
	}
	for _, outcome := range []string{"ok", "busy", "refused", "failed"} {
		m.signatures.WithLabelValues(outcome)
	}
	return m
}

// setAddressInUse sets which address is in use.
func (m *Metrics) setAddressInUse(of *targets) {
	for _, t := range of.all {
		value := 0.0
		if t == of.current() {
			value = 1
		}
		m.inUse.WithLabelValues(t.String()).Set(value)
	}
}

// leafOf returns the certificate in a gateway's snapshot, nil if there is none. If there are two, it is that for clients.
func leafOf(s *gateway.Snapshot) *gateway.Leaf { return cmp.Or(s.DownstreamLeaf, s.Leaf) }

// setCertificate sets when the certificate of a gateway expires, or the one that signs it if that is earlier.
func (m *Metrics) setCertificate(id gateway.ID, leaf *gateway.Leaf) {
	if leaf == nil {
		m.removeCertificate(id)
		return
	}
	first := chainOf(leaf).First()
	m.expiries.WithLabelValues(id.String()).Set(float64(first.Until.Unix()))
	m.lifetimes.WithLabelValues(id.String()).Set(first.Until.Sub(first.From).Seconds())
}

// removeCertificate removes the series of a gateway that is no longer watched.
func (m *Metrics) removeCertificate(id gateway.ID) {
	m.expiries.DeleteLabelValues(id.String())
	m.lifetimes.DeleteLabelValues(id.String())
}

func (m *Metrics) countLogin(component string, err error) {
	outcome := "failed"
	switch {
	case err == nil:
		outcome = "ok"
	case errors.Is(err, ErrLoginRefused):
		outcome = "refused"
	}
	m.logins.WithLabelValues(component, outcome).Inc()
}

func (m *Metrics) countLogout(component string, err error) {
	outcome := "ok"
	if err != nil {
		outcome = "failed"
	}
	m.logouts.WithLabelValues(component, outcome).Inc()
}

func (m *Metrics) countSignature(err error) {
	outcome := "failed"
	switch {
	case err == nil:
		outcome = "ok"
	case errors.Is(err, errBusy):
		outcome = "busy"
	case errors.As(err, new(permanentError)):
		outcome = "refused"
	}
	m.signatures.WithLabelValues(outcome).Inc()
}

// setSaved sets when a gateway was saved; a zero time if it never was.
func (m *Metrics) setSaved(id gateway.ID, at time.Time) {
	m.saved.WithLabelValues(id.String()).Set(seconds(at))
}

func (m *Metrics) removeSaved(id gateway.ID) { m.saved.DeleteLabelValues(id.String()) }

// setRestored sets since when what a gateway uses of the state directory was saved.
func (m *Metrics) setRestored(id gateway.ID, s *gateway.Snapshot) {
	m.restored.WithLabelValues(id.String()).Set(seconds(s.Restored))
}

func (m *Metrics) removeRestored(id gateway.ID) { m.restored.DeleteLabelValues(id.String()) }

// seconds returns a time in seconds since 1970; 0 for the zero time.
func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.Unix())
}
