{{- /* The name of all objects. fullnameOverride and nameOverride name those of the Consul chart. */ -}}
{{- define "usher.name" -}}
{{- if .Values.name -}}
{{- .Values.name -}}
{{- else if contains "usher" .Release.Name -}}
{{- .Release.Name | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-usher" .Release.Name | trunc 45 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "usher.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "usher.name" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "usher.selector" -}}
app.kubernetes.io/name: usher
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "usher.labels" -}}
{{- $own := dict
  "app.kubernetes.io/name" "usher"
  "app.kubernetes.io/instance" .Release.Name
  "app.kubernetes.io/version" (.Chart.AppVersion | toString)
  "app.kubernetes.io/managed-by" .Release.Service
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") -}}
{{- toYaml (mustMerge $own (deepCopy .Values.labels) (dig "global" "extraLabels" dict .Values.AsMap | default dict | deepCopy)) -}}
{{- end -}}

{{- /* metadata of an object: (list . suffix) or (list . suffix namespace) */ -}}
{{- define "usher.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "usher.name" $root }}{{ index . 1 }}
namespace: {{ if gt (len .) 2 }}{{ index . 2 }}{{ else }}{{ $root.Release.Namespace }}{{ end }}
labels:
  {{- include "usher.labels" $root | nindent 2 }}
{{- end -}}

{{- define "usher.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default .Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{- /* roleRef and subjects of a binding to Usher's service account: (list . kind role) */ -}}
{{- define "usher.binding" }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ index . 1 }}
  name: {{ index . 2 }}
subjects:
- kind: ServiceAccount
  name: {{ include "usher.serviceAccount" (index . 0) }}
  namespace: {{ (index . 0).Release.Namespace }}
{{- end -}}
