{{- /*
usher.facts is what the templates know about Consul and its gateways, as YAML: what the values of the Consul chart
say, and what the chart's own values replace. Values of the Consul chart can have any content, so dig reads them.
*/ -}}
{{- define "usher.facts" -}}
{{- $v := .Values.AsMap -}}
{{- $prefix := include "usher.consulPrefix" . -}}
{{- $namespace := default .Release.Namespace .Values.consul.namespace -}}
{{- $facts := dict "prefix" $prefix "namespace" $namespace -}}
{{- $_ := set $facts "http" (include "usher.consulAddress" (list . $prefix $namespace "http")) -}}
{{- $_ := set $facts "grpc" (include "usher.consulAddress" (list . $prefix $namespace "grpc")) -}}
{{- $_ := set $facts "tls" (or (hasPrefix "https://" $facts.http) (hasPrefix "https://" $facts.grpc)) -}}
{{- $_ := set $facts "ca" (include "usher.consulCA" (list . $facts) | fromYaml) -}}
{{- $_ := set $facts "serverName" (include "usher.consulServerName" .) -}}
{{- if dig "global" "enableConsulNamespaces" false $v -}}
{{- $_ := set $facts "tenancy" "default" -}}
{{- end -}}
{{- with .Values.consul.namespaceInConsul }}{{ $_ := set $facts "tenancy" . }}{{ end -}}
{{- if dig "global" "adminPartitions" "enabled" false $v -}}
{{- $_ := set $facts "partition" (dig "global" "adminPartitions" "name" "default" $v | default "default") -}}
{{- end -}}
{{- with .Values.consul.partition }}{{ $_ := set $facts "partition" . }}{{ end -}}
{{- $_ := set $facts "acls" (dig "global" "acls" "manageSystemACLs" false $v | default false) -}}
{{- $_ := set $facts "login" (include "usher.loginMethod" (list . $facts)) -}}
{{- $_ := set $facts "envoyLogin" (include "usher.envoyLoginMethod" (list . $facts)) -}}
{{- if and .Values.tokenReview.enabled (not $facts.envoyLogin) -}}
{{- fail "tokenReview.enabled: Envoys send no service account tokens, because global.acls.manageSystemACLs is off or consul.envoyLogin.authMethod is none; set consul.envoyLogin.authMethod, or turn tokenReview off" -}}
{{- end -}}
{{- $_ := set $facts "gateways" (include "usher.gateways" (list . $facts) | fromYamlArray) -}}
{{- toYaml $facts -}}
{{- end -}}

{{- /* The prefix of the names of Consul's objects. */ -}}
{{- define "usher.consulPrefix" -}}
{{- $v := .Values.AsMap -}}
{{- $name := default (dig "global" "name" "" $v) (dig "fullnameOverride" "" $v) -}}
{{- if not $name -}}
{{- $name = printf "%s-%s" .Values.consul.release (dig "nameOverride" "" $v | default "consul") -}}
{{- end -}}
{{- $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- /* The addresses of one of Consul's APIs, with commas: (list . prefix namespace "http"|"grpc") */ -}}
{{- define "usher.consulAddress" -}}
{{- $root := index . 0 -}}
{{- $api := index . 3 -}}
{{- $v := $root.Values.AsMap -}}
{{- $own := ternary $root.Values.consul.httpAddr $root.Values.consul.grpcAddr (eq $api "http") -}}
{{- $tls := dig "global" "tls" "enabled" false $v -}}
{{- if $own -}}
{{- $own -}}
{{- else if dig "externalServers" "enabled" false $v -}}
{{- $port := ternary (dig "externalServers" "httpsPort" 8501 $v) (dig "externalServers" "grpcPort" 8502 $v) (eq $api "http") -}}
{{- $addresses := list -}}
{{- range $host := splitList "," (include "usher.externalServers" $root) -}}
{{- $addresses = append $addresses (printf "%s://%s:%d" (ternary "https" "http" (not (not $tls))) $host (int $port)) -}}
{{- end -}}
{{- /* Usher takes one gRPC address for all of the HTTP API, or one for each. */ -}}
{{- with $root.Values.consul.httpAddr -}}
{{- if and (eq $api "grpc") (ne (len (splitList "," .)) (len $addresses)) -}}
{{- $addresses = list (first $addresses) -}}
{{- end -}}
{{- end -}}
{{- join "," $addresses -}}
{{- else -}}
{{- include "usher.checkServers" $root -}}
{{- $port := ternary (ternary 8501 8500 (not (not $tls))) 8502 (eq $api "http") -}}
{{- printf "%s://%s-server.%s.svc:%d" (ternary "https" "http" (not (not $tls))) (index . 1) (index . 2) $port -}}
{{- end -}}
{{- end -}}

{{- /* The hosts of Consul's servers outside of the cluster, with commas. */ -}}
{{- define "usher.externalServers" -}}
{{- $hosts := dig "externalServers" "hosts" list .Values.AsMap -}}
{{- if not $hosts -}}
{{- fail "externalServers.hosts is empty: name a server, or set consul.httpAddr and consul.grpcAddr" -}}
{{- end -}}
{{- $names := list -}}
{{- range $i, $host := $hosts -}}
{{- if or (contains "=" $host) (contains " " $host) -}}
{{- fail (printf "externalServers.hosts[%d] %q finds servers with a command or a cloud, which Usher cannot do; set consul.httpAddr and consul.grpcAddr" $i $host) -}}
{{- end -}}
{{- if and (contains ":" $host) (not (hasPrefix "[" $host)) -}}
{{- $host = printf "[%s]" $host -}}
{{- end -}}
{{- $names = append $names $host -}}
{{- end -}}
{{- join "," $names -}}
{{- end -}}

{{- /* Fails if the Consul chart runs no servers. */ -}}
{{- define "usher.checkServers" -}}
{{- $v := .Values.AsMap -}}
{{- $enabled := dig "server" "enabled" "-" $v -}}
{{- if eq ($enabled | toString) "-" -}}
{{- $enabled = dig "global" "enabled" true $v -}}
{{- end -}}
{{- if not $enabled -}}
{{- fail "server.enabled and externalServers.enabled are off, so the values do not say where Consul is; set consul.httpAddr and consul.grpcAddr" -}}
{{- end -}}
{{- end -}}

{{- define "usher.consulServerName" -}}
{{- $v := .Values.AsMap -}}
{{- if .Values.consul.tlsServerName -}}
{{- .Values.consul.tlsServerName -}}
{{- else if and (dig "externalServers" "enabled" false $v) (dig "externalServers" "tlsServerName" "" $v) -}}
{{- dig "externalServers" "tlsServerName" "" $v -}}
{{- else if dig "global" "cloud" "enabled" false $v -}}
{{- printf "server.%s.%s" (dig "global" "datacenter" "dc1" $v) (dig "global" "domain" "consul" $v) -}}
{{- end -}}
{{- end -}}

{{- /* Where the certificate of Consul's CA is, as YAML: secretName and secretKey, pem, or nothing. (list . facts) */ -}}
{{- define "usher.consulCA" -}}
{{- $root := index . 0 -}}
{{- $facts := index . 1 -}}
{{- $v := $root.Values.AsMap -}}
{{- $own := $root.Values.consul.ca -}}
{{- $external := dig "externalServers" "enabled" false $v -}}
{{- if $own.pem -}}
{{- toYaml (dict "pem" $own.pem) -}}
{{- else if $own.secretName -}}
{{- toYaml (dict "secretName" $own.secretName "secretKey" (default "tls.crt" $own.secretKey)) -}}
{{- else if or (not $facts.tls) (not (dig "global" "tls" "enabled" false $v)) $own.systemRoots (and $external (dig "externalServers" "useSystemRoots" false $v)) -}}
{{- toYaml dict -}}
{{- else if dig "global" "secretsBackend" "vault" "enabled" false $v -}}
{{- fail "global.secretsBackend.vault.enabled: the certificate of Consul's CA is in Vault, which this chart does not read; put it into a Secret and set consul.ca.secretName, or set consul.ca.pem or consul.ca.systemRoots" -}}
{{- else -}}
{{- $name := dig "global" "tls" "caCert" "secretName" "" $v | default (printf "%s-ca-cert" $facts.prefix) -}}
{{- if ne $facts.namespace $root.Release.Namespace -}}
{{- fail (printf "the Secret %s with Consul's CA is in the namespace %s, and a pod in %s cannot mount it; install Usher in %s, or set consul.ca.pem" $name $facts.namespace $root.Release.Namespace $facts.namespace) -}}
{{- end -}}
{{- toYaml (dict "secretName" $name "secretKey" (default (dig "global" "tls" "caCert" "secretKey" "" $v | default "tls.crt") $own.secretKey)) -}}
{{- end -}}
{{- end -}}

{{- /* The auth method for Usher's own login; "" for none. (list . facts) */ -}}
{{- define "usher.loginMethod" -}}
{{- $root := index . 0 -}}
{{- $facts := index . 1 -}}
{{- $consul := $root.Values.consul -}}
{{- if and $consul.token.secretName $consul.login.authMethod -}}
{{- fail "consul.token.secretName and consul.login.authMethod: Usher has either a token or a login; remove one of them" -}}
{{- end -}}
{{- if $consul.login.authMethod -}}
{{- $consul.login.authMethod -}}
{{- else if and $facts.acls (not $consul.token.secretName) -}}
{{- printf "%s-k8s-component-auth-method" $facts.prefix -}}
{{- end -}}
{{- end -}}

{{- /* The auth method for the tokens of Envoys; "" for none. (list . facts) */ -}}
{{- define "usher.envoyLoginMethod" -}}
{{- $root := index . 0 -}}
{{- $facts := index . 1 -}}
{{- $own := $root.Values.consul.envoyLogin.authMethod -}}
{{- if eq $own "none" -}}
{{- else if $own -}}
{{- $own -}}
{{- else if $facts.acls -}}
{{- printf "%s-k8s-component-auth-method" $facts.prefix -}}
{{- end -}}
{{- end -}}

{{- /* The gateways, as YAML: a list of name, service, namespace and tenancy. (list . facts) */ -}}
{{- define "usher.gateways" -}}
{{- $root := index . 0 -}}
{{- $facts := index . 1 -}}
{{- $v := $root.Values.AsMap -}}
{{- $given := $root.Values.gateways -}}
{{- $key := "gateways" -}}
{{- if and (not $given) (dig "ingressGateways" "enabled" false $v) -}}
{{- $given = dig "ingressGateways" "gateways" list $v -}}
{{- $key = "ingressGateways.gateways" -}}
{{- end -}}
{{- $gateways := list -}}
{{- $seen := dict -}}
{{- range $i, $gateway := $given -}}
{{- $name := $gateway.name | default "" | toString -}}
{{- if not $name -}}
{{- fail (printf "%s[%d] has no name; add one" $key $i) -}}
{{- end -}}
{{- if hasKey $seen $name -}}
{{- fail (printf "%s: two gateways have the name %s; give each its own" $key $name) -}}
{{- end -}}
{{- $_ := set $seen $name true -}}
{{- /* The key service of the Consul chart is an object, and says nothing about the name. */ -}}
{{- $service := printf "%s-%s" $facts.prefix $name -}}
{{- if kindIs "string" $gateway.service -}}
{{- $service = default $service $gateway.service -}}
{{- end -}}
{{- $tenancy := default (dig "ingressGateways" "defaults" "consulNamespace" "default" $v | default "default") $gateway.consulNamespace -}}
{{- $gateways = append $gateways (dict "name" $name "service" $service "namespace" (default $facts.namespace $gateway.namespace) "tenancy" $tenancy) -}}
{{- end -}}
{{- toYaml $gateways -}}
{{- end -}}

{{- /* The rules of Usher's ACL policy, as docs/usher-policy.hcl. (list . facts) */ -}}
{{- define "usher.policy" -}}
{{- $facts := index . 1 -}}
{{- $rules := include "usher.policyInPartition" . | trim -}}
{{- if $facts.partition -}}
partition "{{ $facts.partition }}" {
{{ $rules | indent 2 }}
}
{{- else -}}
{{ $rules }}
{{- end -}}
{{- end -}}

{{- define "usher.policyInPartition" -}}
{{- $v := (index . 0).Values.AsMap -}}
{{- $facts := index . 1 -}}
{{- $read := include "usher.readRules" . -}}
{{- if $facts.tenancy -}}
{{- $services := dict -}}
{{- range $facts.gateways }}{{ $_ := set $services .tenancy (append (get $services .tenancy | default list) .name) }}{{ end -}}
{{- range $namespace, $names := $services }}
namespace "{{ $namespace }}" {
  {{- range $names }}
  {{- include "usher.writeRule" . | nindent 2 }}
  {{- end }}
}
{{- end }}
namespace_prefix "" {
{{ $read | indent 2 }}
}
{{- else -}}
{{- range $facts.gateways }}
{{ include "usher.writeRule" .name }}
{{- end }}
{{ $read }}
{{- end -}}
{{- /* Without IPv4 or Consul's usual domain, Usher asks the agent for its own. */ -}}
{{- if or (ne (dig "global" "domain" "consul" $v | default "consul") "consul") (dig "global" "dualStack" "enabled" false $v) }}
agent_prefix "" {
  policy = "read"
}
{{- end -}}
{{- if dig "global" "peering" "enabled" false $v }}
peering = "read"
{{- end -}}
{{- end -}}

{{- define "usher.writeRule" -}}
service "{{ . }}" {
  policy = "write"
}
{{- end -}}

{{- define "usher.readRules" -}}
service_prefix "" {
  policy = "read"
}
node_prefix "" {
  policy = "read"
}
{{- end -}}

{{- /* The environment with which Usher, and the consul command, reach Consul. (list . facts) */ -}}
{{- define "usher.consulEnv" -}}
{{- $root := index . 0 -}}
{{- $facts := index . 1 -}}
- name: CONSUL_HTTP_ADDR
  value: {{ $facts.http | quote }}
{{- if $facts.ca }}
- name: CONSUL_CACERT
  value: /etc/usher/consul-ca/ca.crt
{{- end }}
{{- with $facts.serverName }}
- name: CONSUL_TLS_SERVER_NAME
  value: {{ . | quote }}
{{- end }}
{{- with $facts.tenancy }}
- name: CONSUL_NAMESPACE
  value: {{ . | quote }}
{{- end }}
{{- with $facts.partition }}
- name: CONSUL_PARTITION
  value: {{ . | quote }}
{{- end }}
{{- end -}}

{{- /* The volume with Consul's CA. (list . facts) */ -}}
{{- define "usher.consulCAVolume" -}}
{{- $root := index . 0 -}}
{{- $ca := (index . 1).ca -}}
- name: consul-ca
  {{- if $ca.pem }}
  configMap:
    name: {{ include "usher.name" $root }}-consul-ca
  {{- else }}
  secret:
    secretName: {{ $ca.secretName }}
    defaultMode: 288
    items:
    - key: {{ $ca.secretKey }}
      path: ca.crt
  {{- end }}
{{- end -}}

{{- /* The port of an address of Consul. */ -}}
{{- define "usher.portOf" -}}
{{- $port := regexFind ":[0-9]+$" (regexReplaceAll "/.*$" (regexReplaceAll "^[a-z]+://" . "") "") -}}
{{- if $port -}}
{{- trimPrefix ":" $port -}}
{{- else -}}
{{- ternary "443" "80" (hasPrefix "https://" .) -}}
{{- end -}}
{{- end -}}
