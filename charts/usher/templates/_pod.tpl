{{- /* Not "" if Usher writes the key of the connection reports into a Secret of the chart. */ -}}
{{- define "usher.ownsReportKey" -}}
{{- if and .Values.connectionReports.enabled (not .Values.connectionReports.secretName) }}true{{ end -}}
{{- end -}}

{{- /* The flags of usher serve, as YAML. (list . facts) */ -}}
{{- define "usher.args" -}}
{{- $root := index . 0 -}}
{{- $facts := index . 1 -}}
{{- $values := $root.Values -}}
{{- $v := $values.AsMap -}}
{{- $level := $values.log.level | default (dig "global" "logLevel" "" $v) | default "info" -}}
{{- $level = get (dict "trace" "debug" "warning" "warn" "err" "error") $level | default $level -}}
{{- $json := dig "global" "logJSON" false $v -}}
- serve
- --xds-addr=:18000
- --admin-addr=:18001
- --consul-grpc-addr={{ $facts.grpc }}
{{- if include "usher.xdsSecret" $root }}
- --tls-cert=/etc/usher/xds-tls/tls.crt
- --tls-key=/etc/usher/xds-tls/tls.key
{{- else }}
- --insecure-plaintext
{{- end }}
{{- if $values.dataplane.enabled }}
- --dataplane-addr=:18002
- --dataplane-drain-time={{ int $values.dataplane.drainTimeSeconds }}s
{{- end }}
{{- include "usher.webhookArgs" . }}
{{- with $facts.login }}
- --login-auth-method={{ . }}
{{- end }}
{{- with $facts.envoyLogin }}
- --envoy-login-auth-method={{ . }}
{{- end }}
{{- if $values.tokenReview.enabled }}
- --token-review
{{- end }}
{{- if $values.connectionReports.enabled }}
{{- if include "usher.ownsReportKey" $root }}
- --connection-report-key-secret={{ $root.Release.Namespace }}/{{ include "usher.name" $root }}-report-key
{{- else }}
- --connection-report-key-file=/etc/usher/report-key/key
{{- end }}
{{- else }}
- --connection-reports=false
{{- end }}
{{- if $values.stateDir.enabled }}
- --state-dir=/var/lib/usher/state
{{- if $values.stateDir.secretName }}
- --state-key-file=/etc/usher/state-key/key
{{- end }}
{{- end }}
{{- if $values.balancerRecord.enabled }}
- --balancer-record={{ $root.Release.Namespace }}/{{ include "usher.name" $root }}-balancers
{{- end }}
{{- with $values.balancerGrace }}
- --balancer-grace={{ . }}
{{- end }}
{{- range $facts.gateways }}
{{- if or $facts.tenancy $facts.partition }}
- --gateway={{ $facts.partition | default "default" }}/{{ .tenancy }}/{{ .name }}
{{- else }}
- --gateway={{ .name }}
{{- end }}
{{- end }}
- --config=/etc/usher/config/usher.json
- --drain-time={{ int $values.drainTimeSeconds }}s
- --log-level={{ $level }}
- --log-format={{ $values.log.format | default (ternary "json" "text" (not (not $json))) }}
{{- range $values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{- /* The flags of the admission webhook, as YAML; "" without one. (list . facts) */ -}}
{{- define "usher.webhookArgs" -}}
{{- $change := include "usher.podChange" . | fromYaml -}}
{{- if eq $change.type "webhook" }}
- --webhook-addr=:18003
- --webhook-container={{ $change.container }}
{{- range $change.args }}
- --webhook-arg={{ . }}
{{- end }}
{{- with $change.caSecret }}
- --webhook-ca-secret={{ . }}
{{- end }}
{{- with $change.terminationGracePeriodSeconds }}
- --webhook-termination-grace-period={{ int . }}s
{{- end }}
{{- end -}}
{{- end -}}

{{- /* The volumes that Usher reads, each at /etc/usher/<name>, as YAML. (list . facts) */ -}}
{{- define "usher.volumes" -}}
{{- $root := index . 0 -}}
{{- $facts := index . 1 -}}
{{- $name := include "usher.name" $root -}}
{{- $volumes := list -}}
{{- with include "usher.xdsSecret" $root -}}
{{- $items := list (dict "key" "tls.crt" "path" "tls.crt") (dict "key" "tls.key" "path" "tls.key") -}}
{{- $volumes = append $volumes (dict "name" "xds-tls" "secret" (dict "secretName" . "defaultMode" 288 "items" $items)) -}}
{{- end -}}
{{- if $facts.ca -}}
{{- $volumes = concat $volumes (include "usher.consulCAVolume" (list $root $facts) | fromYamlArray) -}}
{{- end -}}
{{- with $root.Values.consul.token.secretName -}}
{{- $items := list (dict "key" $root.Values.consul.token.secretKey "path" "token") -}}
{{- $volumes = append $volumes (dict "name" "consul-token" "secret" (dict "secretName" . "defaultMode" 288 "items" $items)) -}}
{{- end -}}
{{- if and $root.Values.connectionReports.enabled $root.Values.connectionReports.secretName -}}
{{- $items := list (dict "key" $root.Values.connectionReports.secretKey "path" "key") -}}
{{- $volumes = append $volumes (dict "name" "report-key" "secret" (dict "secretName" $root.Values.connectionReports.secretName "defaultMode" 288 "items" $items)) -}}
{{- end -}}
{{- if and $root.Values.stateDir.enabled $root.Values.stateDir.secretName -}}
{{- $items := list (dict "key" $root.Values.stateDir.secretKey "path" "key") -}}
{{- $volumes = append $volumes (dict "name" "state-key" "secret" (dict "secretName" $root.Values.stateDir.secretName "defaultMode" 288 "items" $items)) -}}
{{- end -}}
{{- $volumes = append $volumes (dict "name" "config" "configMap" (dict "name" (printf "%s-config" $name))) -}}
{{- toYaml $volumes -}}
{{- end -}}

{{- /* Their mounts, as YAML. (list . facts) */ -}}
{{- define "usher.volumeMounts" -}}
{{- $mounts := list -}}
{{- range include "usher.volumes" . | fromYamlArray -}}
{{- $mounts = append $mounts (dict "name" .name "mountPath" (printf "/etc/usher/%s" .name) "readOnly" true) -}}
{{- end -}}
{{- toYaml $mounts -}}
{{- end -}}

{{- /* The volume of the state directory in a list, as YAML. Usher creates its directory in it, with the mode that it needs. */ -}}
{{- define "usher.stateVolumes" -}}
{{- $volumes := list -}}
{{- if .Values.stateDir.enabled -}}
{{- $volume := dict "name" "state" "emptyDir" dict -}}
{{- with .Values.stateDir.claimName -}}
{{- if gt (int $.Values.replicas) 1 -}}
{{- fail "stateDir.claimName: a state directory belongs to a single Usher; set replicas to 1, or remove the claim so that each replica has an emptyDir" -}}
{{- end -}}
{{- $volume = dict "name" "state" "persistentVolumeClaim" (dict "claimName" .) -}}
{{- end -}}
{{- $volumes = append $volumes $volume -}}
{{- end -}}
{{- toYaml $volumes -}}
{{- end -}}

{{- /* Its mount, as YAML. */ -}}
{{- define "usher.stateMounts" -}}
{{- $mounts := list -}}
{{- if .Values.stateDir.enabled -}}
{{- $mounts = append $mounts (dict "name" "state" "mountPath" "/var/lib/usher") -}}
{{- end -}}
{{- toYaml $mounts -}}
{{- end -}}

{{- /* Annotations of the pods, as YAML. */ -}}
{{- define "usher.podAnnotations" -}}
{{- $annotations := dict "consul.hashicorp.com/connect-inject" "false" "consul.hashicorp.com/mesh-inject" "false" -}}
{{- $scrape := .Values.metrics.scrapeAnnotations | toString -}}
{{- if not $scrape -}}
{{- $scrape = dig "global" "metrics" "enabled" false .Values.AsMap | toString -}}
{{- end -}}
{{- if eq $scrape "true" -}}
{{- $_ := mustMerge $annotations (dict "prometheus.io/scrape" "true" "prometheus.io/port" "18001" "prometheus.io/path" "/metrics") -}}
{{- end -}}
{{- toYaml (mustMerge (deepCopy .Values.podAnnotations) $annotations) -}}
{{- end -}}

{{- /* The flags of usher helm-values that move gateways to this release. (list . facts) */ -}}
{{- define "usher.helmValuesFlags" -}}
{{- include "usher.releaseFlags" . -}}
{{- include "usher.gatewayFlags" . -}}
{{- if not (has (index . 0).Values.xds.tls.mode (list "none" "consul-ca")) }} --ca-file usher-ca.pem{{ end -}}
{{- end -}}

{{- /*
The flags of usher helm-values --check. Pods that connect by flags of consul-dataplane need no CA for it. (list . facts)
*/ -}}
{{- define "usher.checkFlags" -}}
{{- $values := (index . 0).Values -}}
{{- if not $values.dataplane.enabled -}}
{{- include "usher.helmValuesFlags" . -}}
{{- else -}}
{{- include "usher.releaseFlags" . -}}
{{- if $values.admission.gateways -}}
{{- range $values.admission.gateways }} --gateway {{ . }}{{ end -}}
{{- else -}}
{{- include "usher.gatewayFlags" . -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Those of them that name the releases. (list . facts) */ -}}
{{- define "usher.releaseFlags" -}}
{{- $root := index . 0 -}}
{{- $facts := index . 1 -}}
{{- $mode := $root.Values.xds.tls.mode -}}
{{- $name := include "usher.name" $root -}}
--release {{ $root.Values.consul.release }} -n {{ $facts.namespace }}
{{- if or (ne $name "usher") (ne $root.Release.Namespace $facts.namespace) }} --usher-service {{ $root.Release.Namespace }}/{{ $name }}
{{- end }}
{{- if eq $mode "none" }} --xds-addr {{ $name }}.{{ $root.Release.Namespace }}.svc:18000
{{- end }}
{{- end -}}

{{- /* Those that name the gateways, if Usher serves only some of the Consul chart's. (list . facts) */ -}}
{{- define "usher.gatewayFlags" -}}
{{- $root := index . 0 -}}
{{- $facts := index . 1 -}}
{{- if $root.Values.gateways -}}
{{- $names := list -}}
{{- range dig "ingressGateways" "gateways" list $root.Values.AsMap }}{{ $names = append $names .name }}{{ end -}}
{{- range $facts.gateways -}}
{{- if has .name $names }} --gateway {{ .name }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
