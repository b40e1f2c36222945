package collect

import (
	"bytes"
	"context"
	"fmt"
	"strconv"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/usherproxy/usher/internal/adminport"
	"github.com/usherproxy/usher/internal/doctor"
)

// readConnections returns the connections that Envoys have reported, and the listeners whose connections all have headers.
func readConnections(ctx context.Context, usher adminport.Client) (map[doctor.Reported]uint64, map[doctor.GatewayPort]bool, error) {
	ctx, cancel := inTime(ctx)
	defer cancel()
	text, err := usher.Get(ctx, "/metrics")
	if err != nil {
		return nil, nil, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		return nil, nil, fmt.Errorf("/metrics: %w", err)
	}
	reported, headersOnly := map[doctor.Reported]uint64{}, map[doctor.GatewayPort]bool{}
	for _, m := range families["usher_reported_connections_total"].GetMetric() {
		labels := labelsOf(m)
		reported[doctor.Reported{GatewayPort: portOf(labels), Type: labels["type"]}] = uint64(m.GetCounter().GetValue())
	}
	for _, m := range families["usher_listener_headers_only"].GetMetric() {
		headersOnly[portOf(labelsOf(m))] = m.GetGauge().GetValue() == 1
	}
	return reported, headersOnly, nil
}

func labelsOf(m *dto.Metric) map[string]string {
	labels := map[string]string{}
	for _, l := range m.GetLabel() {
		labels[l.GetName()] = l.GetValue()
	}
	return labels
}

func portOf(labels map[string]string) doctor.GatewayPort {
	port, _ := strconv.Atoi(labels["port"])
	return doctor.GatewayPort{Gateway: labels["gateway"], Port: port}
}
