package consulchart

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/version"
)

// newest is the newest chart that Usher is tested with. It stands for a chart whose version is not known.
var newest = version.MustParseGeneric("2.0.3")

// chartVersion is the version of the chart in use.
type chartVersion struct {
	*version.Version
	known bool   // otherwise it is the newest
	from  string // the flag or the value that it is known from
}

// chartVersion returns the version of the chart: from the flag, or from the tag of the image that is released with
// each chart.
func (v *Values) chartVersion(flag string) (chartVersion, error) {
	if flag != "" {
		parsed, err := version.ParseGeneric(flag)
		if err != nil {
			return chartVersion{}, fmt.Errorf("--chart-version %s: it is not a version; use one such as 1.9.11", flag)
		}
		return chartVersion{parsed, true, "--chart-version " + flag}, nil
	}
	const path = "global.imageK8S"
	_, tag := splitImage(v.text(path, ""))
	if parsed, err := version.ParseGeneric(tag); err == nil {
		return chartVersion{parsed, true, v.where(path)}, nil
	}
	return chartVersion{Version: newest}, nil
}

// splitImage splits the name of an image into its repository and its tag.
func splitImage(image string) (repository, tag string) {
	image, _, _ = strings.Cut(image, "@")
	slash := strings.LastIndex(image, "/")
	if colon := strings.LastIndex(image, ":"); colon > slash {
		return image[:colon], image[colon+1:]
	}
	return image, ""
}

// firstRelease returns the first release of the chart's minor version whose gateways have Annotation.
func firstRelease(v *version.Version) string {
	switch {
	case v.Major() != 1 || v.Minor() >= 4:
		return ""
	case v.Minor() == 3:
		return "1.3.1"
	case v.Minor() == 2:
		return "1.2.4"
	}
	return "1.1.8"
}

// CheckChart returns an error if gateways of the chart cannot get a bootstrap by an annotation. The version is that of
// the flag; without one, the one that the values' images have, and else the newest.
func (v *Values) CheckChart(flag string) error {
	chart, err := v.chartVersion(flag)
	if err != nil {
		return err
	}
	if chart.Major() < 1 {
		return fmt.Errorf("%s: gateways of chart %s have no consul-dataplane; upgrade the chart to 1.1.8 or later", chart.from, chart)
	}
	if first := firstRelease(chart.Version); first != "" && chart.LessThan(version.MustParseGeneric(first)) {
		return fmt.Errorf("%s: gateways of chart %s do not read the annotation proxy-config-map, which came with %s; upgrade the chart, "+
			"or lead consul-dataplane to Usher's gRPC front, "+
			"or put the bootstrap into the ProxyDefaults resource (spec.config.%s), where it is for all proxies", chart.from, chart, first, BootstrapKey)
	}
	return nil
}

// consulOfChart has the minor versions of Consul that go with a minor version of the chart
// (https://developer.hashicorp.com/consul/docs/k8s/compatibility).
var consulOfChart = map[string][]string{
	"1.0": {"1.14"}, "1.1": {"1.15"}, "1.2": {"1.16"}, "1.3": {"1.17"}, "1.4": {"1.18"}, "1.5": {"1.19"},
	"1.6": {"1.20"}, "1.7": {"1.20"}, "1.8": {"1.21"}, "1.9": {"1.22"}, "2.0": {"2.0"},
}

func minor(v *version.Version) string { return fmt.Sprintf("%d.%d", v.Major(), v.Minor()) }

// chartsOfConsul returns the minor versions of the chart that go with one of Consul.
func chartsOfConsul(consul string) []string {
	var charts []string
	for chart, consuls := range consulOfChart {
		if slices.Contains(consuls, consul) {
			charts = append(charts, chart)
		}
	}
	slices.Sort(charts)
	return charts
}
