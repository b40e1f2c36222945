{{- /*
usher.podChange is what the pods of the gateways get when they are created, as YAML: type (policy, webhook, or "" for
nothing), apiVersion of the policy, container, args, caSecret, terminationGracePeriodSeconds, and pods, the labels
ingress-gateway-name of the pods. The policy and the webhook make the same change of it. (list . facts)
*/ -}}
{{- define "usher.podChange" -}}
{{- $root := index . 0 -}}
{{- $facts := index . 1 -}}
{{- $own := $root.Values.admission -}}
{{- $dataplane := $root.Values.dataplane.enabled -}}
{{- $grace := int $own.shutdownGracePeriodSeconds -}}
{{- $end := include "usher.podEndSeconds" . | int -}}
{{- include "usher.checkPodChange" . -}}
{{- $change := dict "type" "" "apiVersion" "" "container" "ingress-gateway" "caSecret" "" -}}
{{- if or $dataplane $grace -}}
{{- $change = mustMerge (include "usher.admissionType" . | fromYaml) $change -}}
{{- end -}}
{{- $args := list -}}
{{- if and $change.type $dataplane -}}
{{- $args = include "usher.dataplaneArgs" . | fromYamlArray -}}
{{- $_ := set $change "caSecret" (include "usher.dataplaneCASecret" .) -}}
{{- end -}}
{{- if $grace -}}
{{- $args = append $args (printf "-shutdown-grace-period-seconds=%d" $grace) -}}
{{- end -}}
{{- $_ := set $change "args" $args -}}
{{- $_ := set $change "terminationGracePeriodSeconds" $end -}}
{{- if $change.type -}}
{{- $_ := set $change "pods" (include "usher.changedPods" . | fromYamlArray) -}}
{{- end -}}
{{- toYaml $change -}}
{{- end -}}

{{- /*
How many seconds the pods of gateways need to end: the grace period, the drain of Envoy, and a rest. 0 if nothing asks
for any. Without dataplane.enabled, Envoy has the bootstrap of helm-values, which drains for eight seconds by default.
(list . facts)
*/ -}}
{{- define "usher.podEndSeconds" -}}
{{- $values := (index . 0).Values -}}
{{- $drain := ternary (int $values.dataplane.drainTimeSeconds) 8 $values.dataplane.enabled -}}
{{- $grace := int $values.admission.shutdownGracePeriodSeconds -}}
{{- if or $grace (and $values.dataplane.enabled $drain) -}}
{{- add $grace $drain 2 -}}
{{- else -}}
0
{{- end -}}
{{- end -}}

{{- /*
The gateways that the Consul chart gives less time to end than they need, as YAML. Their pods have it if admission changes
them. (list . facts)
*/ -}}
{{- define "usher.shortEnds" -}}
{{- $v := (index . 0).Values.AsMap -}}
{{- $default := dig "ingressGateways" "defaults" "terminationGracePeriodSeconds" 10 $v -}}
{{- $need := include "usher.podEndSeconds" . | int -}}
{{- $short := list -}}
{{- range dig "ingressGateways" "gateways" list $v -}}
{{- if lt (int (.terminationGracePeriodSeconds | default $default)) $need }}{{ $short = append $short .name }}{{ end -}}
{{- end -}}
{{- toYaml $short -}}
{{- end -}}

{{- /* Fails if the pods of gateways cannot be changed as the values ask for. (list . facts) */ -}}
{{- define "usher.checkPodChange" -}}
{{- $root := index . 0 -}}
{{- $facts := index . 1 -}}
{{- if and $root.Values.dataplane.enabled (eq $root.Values.xds.tls.mode "none") $facts.acls -}}
{{- fail "dataplane.enabled with xds.tls.mode=none: Consul's ACLs are on, and consul-dataplanes would send their tokens unencrypted; use another mode" -}}
{{- end -}}
{{- if and (ne (int $root.Values.dataplane.drainTimeSeconds) 8) (not $root.Values.dataplane.enabled) -}}
{{- fail "dataplane.drainTimeSeconds: dataplane.enabled is false, so it has no effect; with the annotation, use usher helm-values --drain-time" -}}
{{- end -}}
{{- range $root.Values.extraArgs -}}
{{- if hasPrefix "--dataplane-drain-time" . -}}
{{- fail (printf "extraArgs: %s: the pods of gateways would not get the time to drain; use dataplane.drainTimeSeconds" .) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $root.Values.admission.type "none") $root.Values.admission.shutdownGracePeriodSeconds -}}
{{- fail "admission.shutdownGracePeriodSeconds: admission.type is none, so nothing changes the pods; set it to auto, policy or webhook, or set this to 0" -}}
{{- end -}}
{{- end -}}

{{- /* The type of admission, and the apiVersion of a policy, as YAML. (list . facts) */ -}}
{{- define "usher.admissionType" -}}
{{- $root := index . 0 -}}
{{- $asked := $root.Values.admission.type -}}
{{- $served := "" -}}
{{- range list "v1beta1" "v1" -}}
{{- $version := printf "admissionregistration.k8s.io/%s" . -}}
{{- if $root.Capabilities.APIVersions.Has (printf "%s/MutatingAdmissionPolicy" $version) }}{{ $served = $version }}{{ end -}}
{{- end -}}
{{- $type := $asked -}}
{{- if eq $asked "auto" }}{{ $type = ternary "policy" "webhook" (ne $served "") }}{{ end -}}
{{- if and (eq $type "policy") (not $served) -}}
{{- fail "admission.type=policy: the cluster serves no MutatingAdmissionPolicy in v1 or v1beta1 of admissionregistration.k8s.io; set admission.type to webhook, or to none and give the pods the flags yourself; if Helm does not talk to the cluster (helm template), give it --api-versions admissionregistration.k8s.io/v1beta1/MutatingAdmissionPolicy" -}}
{{- end -}}
{{- if eq $type "webhook" -}}
{{- if eq $root.Values.xds.tls.mode "none" -}}
{{- fail (printf "admission.type=%s needs a webhook here, and Kubernetes calls webhooks with TLS only, which xds.tls.mode=none switches off; use another mode, or set admission.type to policy (Kubernetes 1.34 with this API switched on, or later) or none" $asked) -}}
{{- end -}}
{{- if and (eq $root.Values.xds.tls.mode "secret") (not $root.Values.admission.webhook.caBundle) -}}
{{- fail "admission.webhook.caBundle is empty; with a webhook and xds.tls.mode=secret, it is the CA of the certificate in xds.tls.secretName" -}}
{{- end -}}
{{- end -}}
{{- toYaml (dict "type" (ternary "" $type (eq $type "none")) "apiVersion" (ternary $served "" (eq $type "policy"))) -}}
{{- end -}}

{{- /* The flags with which a consul-dataplane connects to Usher, as YAML. The last flag of a name wins. (list . facts) */ -}}
{{- define "usher.dataplaneArgs" -}}
{{- $root := index . 0 -}}
{{- $host := printf "%s.%s.svc" (include "usher.name" $root) $root.Release.Namespace -}}
{{- $tls := dig "global" "tls" "enabled" false $root.Values.AsMap -}}
- -addresses={{ $host }}
- -grpc-port=18002
- -server-watch-disabled=true
{{- if eq $root.Values.xds.tls.mode "none" }}
- -tls-disabled=true
{{- else }}
{{- if not $tls }}
- -tls-disabled=false
{{- end }}
- -tls-server-name={{ $host }}
{{- with $root.Values.dataplane.caFileInPod }}
- -ca-certs={{ . }}
{{- else }}
{{- if include "usher.dataplaneCASecret" . }}
- -ca-certs=/etc/usher-ca/ca.crt
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* The Secret that the pods mount for the CA of Usher's certificate; "" if they have the CA. (list . facts) */ -}}
{{- define "usher.dataplaneCASecret" -}}
{{- $root := index . 0 -}}
{{- $facts := index . 1 -}}
{{- if not (or $root.Values.dataplane.caFileInPod (has $root.Values.xds.tls.mode (list "none" "consul-ca"))) -}}
{{- $name := include "usher.xdsSecret" $root -}}
{{- if ne $facts.namespace $root.Release.Namespace -}}
{{- fail (printf "dataplane.enabled: the CA of Usher's certificate is in the Secret %s of the namespace %s, and the gateways' pods in %s cannot mount it; install Usher in %s, or set xds.tls.mode=consul-ca, or dataplane.caFileInPod" $name $root.Release.Namespace $facts.namespace $facts.namespace) -}}
{{- end -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{- /* The labels ingress-gateway-name of the pods that are changed, as YAML. (list . facts) */ -}}
{{- define "usher.changedPods" -}}
{{- $root := index . 0 -}}
{{- $facts := index . 1 -}}
{{- $names := list -}}
{{- range $facts.gateways }}{{ $names = append $names .name }}{{ end -}}
{{- if not $names -}}
{{- fail "dataplane.enabled and admission.shutdownGracePeriodSeconds are for the pods of gateways, and the values have none: ingressGateways.enabled is off and gateways is empty; name them, or set admission.type to none" -}}
{{- end -}}
{{- $changed := $root.Values.admission.gateways | default $names -}}
{{- range $facts.gateways -}}
{{- if and (has .name $changed) (ne .namespace $facts.namespace) -}}
{{- fail (printf "gateways: the pods of %s are in the namespace %s, and admission changes pods in %s only; leave it out of admission.gateways, or set admission.type to none" .name .namespace $facts.namespace) -}}
{{- end -}}
{{- end -}}
{{- $labels := list -}}
{{- range $changed -}}
{{- if not (has . $names) -}}
{{- fail (printf "admission.gateways: there is no gateway %s; use %s" . (join ", " $names)) -}}
{{- end -}}
{{- $labels = append $labels (printf "%s-%s" $facts.prefix .) -}}
{{- end -}}
{{- toYaml $labels -}}
{{- end -}}

{{- /* The pods that admission changes, for matchConstraints or a webhook. (list . facts change) */ -}}
{{- define "usher.matchGatewayPods" -}}
{{- $facts := index . 1 -}}
{{- $change := index . 2 -}}
matchPolicy: Equivalent
namespaceSelector:
  matchLabels:
    kubernetes.io/metadata.name: {{ $facts.namespace }}
objectSelector:
  matchLabels:
    component: ingress-gateway
  matchExpressions:
  - key: ingress-gateway-name
    operator: In
    values:
    {{- toYaml $change.pods | nindent 4 }}
{{ (index . 3) }}:
- apiGroups: [""]
  apiVersions: [v1]
  operations: [CREATE]
  resources: [pods]
  scope: Namespaced
{{- end -}}

{{- /*
The MutatingWebhookConfiguration, if the pods are changed by a webhook. ca is the CA of Usher's certificate in PEM; ""
if cert-manager writes it. (list . facts ca)
*/ -}}
{{- define "usher.webhookConfiguration" -}}
{{- $root := index . 0 -}}
{{- $facts := index . 1 -}}
{{- $change := include "usher.podChange" (list $root $facts) | fromYaml -}}
{{- if eq $change.type "webhook" -}}
{{- $name := include "usher.name" $root -}}
# While Usher is away, no pod of these gateways is created: it would be a gateway of Consul's own.
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata:
  name: {{ $root.Release.Namespace }}-{{ $name }}-gateway-pods
  labels:
    {{- include "usher.labels" $root | nindent 4 }}
  {{- if eq $root.Values.xds.tls.mode "cert-manager" }}
  annotations:
    cert-manager.io/inject-ca-from: {{ $root.Release.Namespace }}/{{ $name }}-xds
  {{- end }}
webhooks:
- name: gateway-pods.{{ $name }}.{{ $root.Release.Namespace }}.svc
  admissionReviewVersions: [v1]
  clientConfig:
    service:
      name: {{ $name }}
      namespace: {{ $root.Release.Namespace }}
      port: 18003
      path: /gateway-pods
    {{- with index . 2 }}
    caBundle: {{ . | b64enc }}
    {{- end }}
  failurePolicy: Fail
  reinvocationPolicy: IfNeeded
  sideEffects: None
  timeoutSeconds: 5
  {{- include "usher.matchGatewayPods" (list $root $facts $change "rules") | nindent 2 }}
{{- end -}}
{{- end -}}
