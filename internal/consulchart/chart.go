package consulchart

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/version"
)

// newest is the newest chart that Usher is tested with. It stands for a chart whose version is not known.
var newest = version.MustParseGeneric("2.0.3")

// chartVersion is a version of the chart. The chart and its image consul-k8s-control-plane are released together.
type chartVersion struct {
	*version.Version
	known bool   // otherwise it is the newest
	from  string // the flag or the value that it is known from
}

// chartVersion returns the version of the chart: from the flag, else from the tag of the image.
func (v *Values) chartVersion(flag string) (chartVersion, error) {
	if flag == "" {
		return cmp.Or(v.imageVersion("global.imageK8S"), chartVersion{Version: newest}), nil
	}
	parsed, err := version.ParseGeneric(flag)
	if err != nil {
		return chartVersion{}, fmt.Errorf("--chart-version %s: it is not a version; use one such as 1.9.11", flag)
	}
	return chartVersion{parsed, true, "--chart-version " + flag}, nil
}

// controllerVersion returns the version of the endpoints controller, which registers gateways. It is that of its image,
// and only without one in the values that of the chart.
func (v *Values) controllerVersion(flag string) (chartVersion, error) {
	chart, err := v.chartVersion(flag)
	return cmp.Or(v.imageVersion("connectInject.image"), v.imageVersion("global.imageK8S"), chart), err
}

// imageVersion returns the version in the tag of the image at a path; the zero value if there is none.
func (v *Values) imageVersion(path string) chartVersion {
	_, tag := splitImage(v.text(path, ""))
	parsed, err := version.ParseGeneric(tag)
	if err != nil {
		return chartVersion{}
	}
	return chartVersion{parsed, true, v.where(path)}
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

// DefersStats reports whether the Envoy of the gateways is known to have deferred statistics, as Envoy does since 1.27
// and consul-dataplane since 1.3. A chart whose version is not known may be older. The chart is the version that a flag
// names, or "".
func (v *Values) DefersStats(chart string) (bool, error) {
	c, err := v.chartVersion(chart)
	dataplane := cmp.Or(v.imageVersion("global.imageConsulDataplane"), c)
	return err == nil && dataplane.known && dataplane.AtLeast(version.MustParseGeneric("1.3.0")), err
}

// firstRelease returns the first release from the version's line whose controller reads Annotation; "" if all do.
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

// CheckChart returns an error if gateways cannot get a bootstrap by Annotation, because consul-k8s is too old. The chart
// is the version that a flag names, or "".
func (v *Values) CheckChart(chart string) error {
	controller, err := v.controllerVersion(chart)
	if err != nil {
		return err
	}
	return controller.check()
}

// CheckController is CheckChart for the image of a controller that runs. A tag that is no version says nothing.
func CheckController(image string) error {
	_, tag := splitImage(image)
	parsed, err := version.ParseGeneric(tag)
	if err != nil {
		return nil
	}
	return chartVersion{parsed, true, "image " + image}.check()
}

// check returns the error of CheckChart for a controller of this version.
func (controller chartVersion) check() error {
	if controller.Major() < 1 {
		return fmt.Errorf("%s: gateways of consul-k8s %s have no consul-dataplane; upgrade the chart to 1.1.8 or later", controller.from, controller)
	}
	if first := firstRelease(controller.Version); first != "" && controller.LessThan(version.MustParseGeneric(first)) {
		return fmt.Errorf("%s: consul-k8s %s does not read the annotation proxy-config-map of gateways, which came with %s; "+
			"set dataplane.enabled of Usher's chart instead, which changes the pods, or upgrade consul-k8s, "+
			"or put the bootstrap into the ProxyDefaults resource (spec.config.%s), where it is for all proxies", controller.from, controller, first, BootstrapKey)
	}
	return nil
}

// consulOfChart has the minor version of Consul that goes with a minor version of the chart
// (https://developer.hashicorp.com/consul/docs/k8s/compatibility).
var consulOfChart = map[string]string{
	"1.0": "1.14", "1.1": "1.15", "1.2": "1.16", "1.3": "1.17", "1.4": "1.18", "1.5": "1.19",
	"1.6": "1.20", "1.7": "1.20", "1.8": "1.21", "1.9": "1.22", "2.0": "2.0",
}

func minor(v *version.Version) string { return fmt.Sprintf("%d.%d", v.Major(), v.Minor()) }

// chartsOfConsul returns the minor versions of the chart that go with one of Consul, such as "1.6.x or 1.7.x".
func chartsOfConsul(consul string) string {
	var charts []string
	for chart, goesWith := range consulOfChart {
		if goesWith == consul {
			charts = append(charts, chart+".x")
		}
	}
	slices.Sort(charts)
	return strings.Join(charts, " or ")
}
