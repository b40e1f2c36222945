package consulchart

import (
	"slices"
	"strings"
)

// The charts have no schema, so Helm accepts every key and ignores those that no template reads. These tables say
// which keys the charts 1.1 to 2.0 know, where a wrong one would keep a gateway from working as its owner expects.

// knownKeys has the members of the objects that are checked. Objects that are not in it are not checked.
var knownKeys = map[string][]string{
	"": words(`client connectInject dns externalServers fullnameOverride global ingressGateways meshGateway nameOverride
		prometheus server syncCatalog telemetryCollector terminatingGateways tests ui webhookCertManager`),
	"global": words(`acls adminPartitions argocd cloud consulAPITimeout crds datacenter domain dualStack enableConsulNamespaces
		enablePodSecurityPolicies enabled enterpriseLicense experiments extraLabels federation generateManifests
		generateManifestsStorage generateManifestsStorageClassName gossipEncryption image imageConsulDataplane imageK8S
		imagePullPolicy imagePullSecrets installK8sNetworkingCRDs logJSON logLevel metrics name openshift peering
		podSecurityContext recursors secretsBackend tls trustedCAs`),
	"global.acls": words(`annotations bootstrapToken createReplicationToken logLevel manageSystemACLs nodeSelector partitionToken
		replicationToken resources tolerations`),
	"global.adminPartitions":   words("enabled name"),
	"global.enterpriseLicense": words("enableLicenseAutoload secretKey secretName"),
	"global.gossipEncryption":  words("autoGenerate logLevel secretKey secretName"),
	"global.tls": words(`annotations caCert caKey enableAutoEncrypt enabled httpsOnly logLevel serverAdditionalDNSSANs
		serverAdditionalIPSANs verify`),
	"externalServers":                         words("enabled grpcPort hosts httpsPort k8sAuthMethodHost skipServerWatch tlsServerName useSystemRoots"),
	"ingressGateways":                         words("defaults enabled gateways logLevel"),
	"ingressGateways.defaults":                gatewayKeys,
	"ingressGateways.defaults.service":        serviceKeys,
	"ingressGateways.defaults.serviceAccount": words("annotations"),
	gatewaysPath:                              append(words("name"), gatewayKeys...),
	gatewaysPath + ".service":                 serviceKeys,
	gatewaysPath + ".serviceAccount":          words("annotations"),
}

var (
	gatewayKeys = words(`affinity annotations consulNamespace nodeSelector priorityClassName replicas resources service serviceAccount
		terminationGracePeriodSeconds tolerations topologySpreadConstraints`)
	serviceKeys = words("additionalSpec annotations ports type")
)

func words(text string) []string { return strings.Fields(text) }

// ignoredKeys are keys that values of older charts have, or that look as if they had an effect, and why they have none.
var ignoredKeys = map[string]string{
	"controller":                    "since chart 1.0 the controllers of the custom resources run where connectInject runs",
	"global.imageEnvoy":             "since chart 1.0 Envoy is part of global.imageConsulDataplane",
	"global.consulSidecarContainer": "since chart 1.0 gateways have no such container",
	"ingressGateways.defaults.initCopyConsulContainer":       "since chart 1.0 gateways have no such container",
	gatewaysPath + ".initCopyConsulContainer":                "since chart 1.0 gateways have no such container",
	"meshGateway.service.enabled":                            "a mesh gateway always has a Service",
	"ingressGateways.defaults.wanAddress":                    "an ingress gateway takes its address from its Service",
	gatewaysPath + ".wanAddress":                             "an ingress gateway takes its address from its Service",
	"ingressGateways.defaults.service.enabled":               "a gateway always has a Service",
	gatewaysPath + ".service.enabled":                        "a gateway always has a Service",
	"ingressGateways.defaults.service.loadBalancerClass":     "it belongs into the text of service.additionalSpec",
	gatewaysPath + ".service.loadBalancerClass":              "it belongs into the text of service.additionalSpec",
	"ingressGateways.defaults.service.loadBalancerIP":        "it belongs into the text of service.additionalSpec",
	gatewaysPath + ".service.loadBalancerIP":                 "it belongs into the text of service.additionalSpec",
	"ingressGateways.defaults.service.externalTrafficPolicy": "it belongs into the text of service.additionalSpec",
	gatewaysPath + ".service.externalTrafficPolicy":          "it belongs into the text of service.additionalSpec",
}

// onlyInCharts are keys that not all charts have: the last minor version that is known to lack it before it came, and
// the first one after it went. Between the charts that were read, a key gets no notice.
var onlyInCharts = map[string]struct{ lackedUntil, lackedFrom string }{
	"apiGateway":                      {lackedFrom: "1.9"},
	"global.cloud":                    {lackedFrom: "2.0"},
	"global.dualStack":                {lackedUntil: "1.1"},
	"global.imagePullPolicy":          {lackedUntil: "1.1"},
	"global.experiments":              {lackedUntil: "1.1"},
	"global.podSecurityContext":       {lackedUntil: "1.9"},
	"global.crds":                     {lackedUntil: "1.9"},
	"global.generateManifests":        {lackedUntil: "1.9"},
	"global.installK8sNetworkingCRDs": {lackedUntil: "1.9"},
}

// notValues are the first line of "helm get values", and members that Helm itself adds.
var notValues = words("USER-SUPPLIED_VALUES COMPUTED_VALUES")

func isNoValue(key string) bool { return slices.Contains(notValues, strings.ReplaceAll(key, " ", "_")) }

// homeOf returns the object below another one that knows a key; "" if there is none.
func homeOf(key, in string) string {
	home := ""
	for object, keys := range knownKeys {
		below := object != "" && (in == "" || strings.HasPrefix(object, in+"."))
		nearer := home == "" || len(object) < len(home) || len(object) == len(home) && object < home
		if below && slices.Contains(keys, key) && nearer {
			home = object
		}
	}
	return home
}
