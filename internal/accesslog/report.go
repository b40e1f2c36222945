package accesslog

import (
	"maps"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	otlplogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/usherproxy/usher/internal/envoy"
)

// Report is a log of all connections for Usher itself, besides the logs that the settings ask for. The zero value: there
// is none.
type Report struct {
	Name     string // different for each port of a gateway
	Cluster  string // that leads to Usher, in Envoy's bootstrap; while there is none of the name, Envoy drops the entries
	Format   string
	Metadata []*corev3.HeaderValue
}

// ReportName is the name in a listener of the log that is a Report.
const ReportName = "Usher Report"

const (
	// reportsPerSecond bounds the reports of connections with a filter chain, on all threads of an Envoy. An entry costs 1
	// or 2 % of a connection with one request, and what Usher concludes needs a few entries a second.
	reportsPerSecond = 10
	// asksPerSecond is how many connections are asked whether they got no filter chain.
	asksPerSecond = 50
	// reportPerMille is the share of connections that an Envoy reports if it is too old for a rate.
	reportPerMille = 200
	// ReportTime is how long Envoy collects entries before it reports them.
	ReportTime = time.Second
)

// Supports reports whether an Envoy has an operator.
func Supports(can envoy.Capabilities, operator string) bool {
	row, known := operators[operator]
	return known && row.since <= can.LogOperators
}

// addReport adds the report to the listener's logs, which have one entry for each connection, also for those that no
// filter chain gets. It does not count as a log of the administrator's: it follows no setting for access logs.
func (p Params) addReport(all *Logs) error {
	filters, err := p.reportFilters(all)
	if err != nil {
		return err
	}
	service := envoy.GRPCService(p.Report.Cluster)
	service.InitialMetadata = p.Report.Metadata
	for _, filter := range filters {
		log, err := envoy.Extension(&accesslogv3.AccessLog{Filter: filter}, ReportName, &otlplogv3.OpenTelemetryAccessLogConfig{
			//nolint:staticcheck // Envoy before 1.37 knows no other way to name the collector.
			CommonConfig: &grpclogv3.CommonGrpcAccessLogConfig{
				LogName: p.Gateway.String(), GrpcService: service, TransportApiVersion: corev3.ApiVersion_V3,
				BufferFlushInterval: durationpb.New(ReportTime),
			},
			Body:                 otlpString(p.Report.Format),
			DisableBuiltinLabels: true,
			StatPrefix:           "usher_report.", // the statistics of other sinks stay theirs
		})
		if err != nil {
			return err
		}
		all.Listener = append(all.Listener, log)
	}
	return nil
}

// reportFilters bound what the report costs Envoy and Usher. Each selects entries for a log. Connections that get no
// filter chain have a bound of their own: many of them, which anybody can make, must not hide the others.
//
// The expression costs more than the bound. So only as many connections as may be reported are asked whether they got no
// filter chain, with the others among them: of many connections, a share is reported. Those with a filter chain cannot
// be bounded so, because then the others could hide them.
func (p Params) reportFilters(all *Logs) ([]logFilter, error) {
	if !p.Envoy.LogRateLimit {
		return []logFilter{chance("report", reportPerMille)}, nil
	}
	withChain, err := expressionFilter("xds.filter_chain_name != ''")
	if err != nil {
		return nil, err
	}
	withoutChain, err := expressionFilter("xds.filter_chain_name == ''")
	if err != nil {
		return nil, err
	}
	reports, err := all.limit("usher-report:"+p.Report.Name, reportsPerSecond)
	if err != nil {
		return nil, err
	}
	asked, err := all.limit("usher-report-no-chain:"+p.Report.Name, asksPerSecond)
	return []logFilter{allOf(withChain, reports), allOf(asked, withoutChain)}, err
}

// limit returns a filter for so many entries a second, and adds its token bucket.
func (l *Logs) limit(name string, perSecond int) (logFilter, error) {
	filter, buckets, err := tokenBucket(name, perSecond)
	maps.Copy(l.TokenBuckets, buckets)
	return filter, err
}
