package bootstrap

import (
	"cmp"
	"encoding/json"
	"regexp"
	"strings"
)

// Envoy reads labels out of the names of statistics with the regular expressions of stats_config. Consul's bootstraps
// have 25 of them, in which Envoy spends most of its start: a gateway has some hundred statistics for each service.
// The rules of this file give the same labels for less. What makes them fast:
//
//   - Envoy has a user's expressions matched by std::regex of libc++, which tries to match at each character of a name
//     before it gives up, even where an expression begins with ^. A rule that does not match costs ten times as much
//     as one that does. So rules match every cluster of Consul, and a label that the cluster does not have gets an
//     empty value, as in Consul's bootstraps: Prometheus takes that for no label.
//   - A rule that begins with ^cluster\. or ^tcp\. is tried on no other statistics.
//   - std::regex copies its state at each choice, and each turn of a loop is one. So the likely alternative comes
//     first, and long names are read four characters at a time.
//
// The name of a cluster is [<hash>~][<subset>.]<service>.<namespace>.<datacenter>.internal.<trust domain>, or for a
// partition other than default [<subset>.]<service>.<namespace>.<partition>.<datacenter>.internal-v1.<trust domain>,
// or for a cluster peer <service>.<namespace>.<peer>.external.<trust domain>. A trust domain is <UUID>.consul.

// statsTag is a label, and where its value comes from: a fixed one, or what the first group of an expression matches.
// If there are two groups, the second one matches the value. What the first one matches is no part of the metric's name.
type statsTag struct {
	Name       string `json:"tag_name"`
	Regex      string `json:"regex,omitempty"`
	FixedValue string `json:"fixed_value,omitempty"`
}

// segment is what stands between two dots of a name.
const segment = `[^.]+`

// longSegment is a segment of likely many characters of a class.
func longSegment(c string) string {
	return `(?:` + c + c + c + c + `)*(?:` + c + `(?:` + c + c + `?)?)?`
}

// clusterTags are the labels of clusters' statistics, by what follows the prefix in their names.
// datacenter is an expression for the one that is most likely in the names, or "".
func clusterTags(datacenter string) map[string]string {
	expand := strings.NewReplacer(
		`<first>`, longSegment(`[^.]`), // with the hash
		`<service>`, longSegment(`[^.~]`),
		`<segment>`, segment,
		`<namespace>`, `default`, // the likely one
		`<datacenter>`, cmp.Or(datacenter, segment),
		`<type>`, `internal|external|internal-v1`,
		// What follows the datacenter or peer, or where there is a partition before it, the partition.
		`<end>`, `(?:internal|external|[^.]+\.internal-v1|[^.]+\.external)\.........-`,
		`<uuid>`, strings.Repeat(`.`, 36),
	).Replace
	// Most clusters are in the default namespace and the gateway's datacenter. The first hyphen of the trust domain
	// tells a cluster of Consul from one whose name has an "internal", too.
	const likely = `\.<namespace>\.<datacenter>\.internal\.........-`
	tags := map[string]string{
		"custom_hash": `(?:<service>` + likely +
			`|(?:([^.]+)~)??<service>\.<segment>\.(?:<segment>\.)+?(?:<type>)\.........-)`,
		"service_subset": `(?:<service>` + likely +
			`|(?:[^.]+~)?[^.~]+\.<segment>\.<segment>\.<end>` +
			`|(?:[^.]+~)?([^.~]+)\.<segment>\.<segment>\.<segment>\.<end>)`,
		"service":   `(?:[^.~]+[~.])*?(<service>)\.(?:<namespace>\.<datacenter>|<segment>\.<segment>)\.<end>`,
		"namespace": `<first>\.(?:<segment>\.)*?(<namespace>|<segment>)\.(?:<datacenter>|<segment>)\.<end>`,
		"partition": `(?:<first>` + likely +
			`|<first>\.(?:<segment>\.)+?(?:<segment>\.internal|(<segment>)\.<segment>\.internal-v1)\.........-)`,
		"datacenter": `<first>\.(?:<namespace>\.|(?:<segment>\.){1,3}?)(<datacenter>|<segment>)\.(?:internal|internal-v1)\.........-`,
		"peer": `(?:<first>` + likely +
			`|<first>\.(?:<segment>\.)+?(?:<segment>\.internal[-.]|(<segment>)\.external\.........-))`,
		"routing_type": `<first>\.(?:<namespace>\.<datacenter>\.|(?:<segment>\.){2,4}?)(<type>)\.........-`,
		"trust_domain": `<first>\.(?:<namespace>\.<datacenter>\.internal\.|(?:<segment>\.){2,4}?(?:<type>)\.)(<uuid>)\.consul\.`,
		"target":       `(<first>\.(?:<namespace>\.<datacenter>|<segment>(?:\.<segment>){1,3}?))\.(?:<type>)\.........-`,
		// This one removes the cluster from the metric's name.
		"full_target": `((<first>\.(?:<namespace>\.<datacenter>\.internal\.|(?:<segment>\.){2,4}?(?:<type>)\.)<uuid>)\.consul\.)`,
	}
	for name, regex := range tags {
		tags[name] = `^cluster\.` + expand(regex)
	}
	return tags
}

// destinationLabels are the labels of a cluster's statistics, in the order of Consul's bootstraps.
var destinationLabels = []string{
	"custom_hash", "service_subset", "service", "namespace", "partition", "datacenter", "peer", "routing_type",
	"trust_domain", "target", "full_target",
}

// newDestinationLabels are those of them that came after Consul 1.9, so that there is no label with the older prefix.
var newDestinationLabels = map[string]bool{"partition": true, "peer": true}

// destinationTags are the labels of clusters' statistics; withDeprecated adds those that have the names from before
// Consul 1.9.
func destinationTags(datacenter string, withDeprecated bool) []statsTag {
	rules := clusterTags(datacenter)
	var tags []statsTag
	for _, label := range destinationLabels {
		tags = append(tags, statsTag{Name: "consul.destination." + label, Regex: rules[label]})
	}
	for _, label := range destinationLabels {
		if withDeprecated && !newDestinationLabels[label] {
			tags = append(tags, statsTag{Name: "consul." + label, Regex: rules[label]})
		}
	}
	return tags
}

// upstreamTags are the labels of a tcp listener's statistics, whose names are
// tcp.upstream.<service>[.<namespace>[.<partition>]].<datacenter> or tcp.upstream_peered.<service>[.<namespace>].<peer>.
// They are few, so that it does not matter what the rules cost. An http listener of a gateway has no such name.
var upstreamTags = []statsTag{
	{Name: "consul.upstream.service", Regex: `^tcp\.upstream(?:_peered)?\.([^.]+)(?:\.[^.]+){1,3}\.`},
	{Name: "consul.upstream.datacenter", Regex: `^tcp\.upstream\.((?:[^.]+\.){1,3}([^.]+)\.)`},
	{Name: "consul.upstream.peer", Regex: `^tcp\.upstream_peered\.((?:[^.]+\.){1,2}([^.]+)\.)`},
	{Name: "consul.upstream.namespace", Regex: `^tcp\.upstream(?:_peered)?\.[^.]+\.(?:([^.]+)\.(?:[^.]+\.)?)?[^.]+\.`},
	{Name: "consul.upstream.partition", Regex: `^tcp\.upstream\.[^.]+\.(?:[^.]+\.(?:([^.]+)\.)?)?[^.]+\.`},
}

// sourceTags are the labels of all statistics of an instance.
func (o Options) sourceTags() []statsTag {
	tags := []statsTag{
		{Name: "local_cluster", FixedValue: o.Gateway},
		{Name: "consul.source.service", FixedValue: o.Gateway},
		{Name: "consul.source.namespace", FixedValue: o.Namespace},
		{Name: "consul.source.partition", FixedValue: o.Partition},
	}
	if o.Datacenter != "" {
		tags = append(tags, statsTag{Name: "consul.source.datacenter", FixedValue: o.Datacenter})
	}
	return tags
}

// statsTags returns the labels of an instance's statistics, as a JSON list.
func (o Options) statsTags() (string, error) {
	tags := append(destinationTags(regexp.QuoteMeta(o.Datacenter), !o.OmitDeprecatedTags), upstreamTags...)
	list, err := toJSONObjects(append(tags, o.sourceTags()...))
	return "[" + list + "]", err
}

// toJSONObjects returns labels as JSON objects with commas between them.
func toJSONObjects(tags []statsTag) (string, error) {
	out, err := json.Marshal(tags)
	return strings.Trim(string(out), "[]"), err
}
