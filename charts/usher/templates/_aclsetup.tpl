{{- /* The specification of the Job: (list . facts) */ -}}
{{- define "usher.aclSetupSpec" -}}
{{- $root := index . 0 -}}
{{- $facts := index . 1 -}}
{{- $v := $root.Values.AsMap -}}
{{- $own := $root.Values.consul.aclSetup -}}
{{- $name := include "usher.name" $root -}}
{{- if not $facts.login -}}
{{- fail "consul.aclSetup.enabled: Usher does not log in (consul.token is set, or global.acls.manageSystemACLs is off); remove one of them, or set consul.login.authMethod" -}}
{{- end -}}
{{- $secret := $own.secretName | default (dig "global" "acls" "bootstrapToken" "secretName" "" $v) | default (printf "%s-bootstrap-acl-token" $facts.prefix) -}}
{{- $key := $own.secretKey | default (dig "global" "acls" "bootstrapToken" "secretKey" "" $v) | default "token" -}}
{{- if and (ne $facts.namespace $root.Release.Namespace) (not $own.secretName) -}}
{{- fail (printf "consul.aclSetup.enabled: the Secret %s is in the namespace %s, and a pod in %s cannot mount it; install Usher in %s, or set consul.aclSetup.secretName" $secret $facts.namespace $root.Release.Namespace $facts.namespace) -}}
{{- end -}}
backoffLimit: 10
template:
  metadata:
    annotations:
      consul.hashicorp.com/connect-inject: "false"
      consul.hashicorp.com/mesh-inject: "false"
  spec:
    restartPolicy: Never
    automountServiceAccountToken: false
    enableServiceLinks: false
    securityContext:
      runAsNonRoot: true
      {{- if not (dig "global" "openshift" "enabled" false $v) }}
      runAsUser: 100
      fsGroup: 1000
      {{- end }}
      seccompProfile:
        type: RuntimeDefault
    {{- with dig "global" "imagePullSecrets" list $v }}
    imagePullSecrets:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    containers:
    - name: acl-setup
      image: {{ include "usher.aclSetupImage" (list $root $facts) | quote }}
      command: [/bin/sh, -euc]
      args:
      - |
        {{- $root.Files.Get "acl-setup.sh" | trim | nindent 8 }}
      env:
      {{- /* The consul command takes one address. */}}
      {{- include "usher.consulEnv" (list $root (set (deepCopy $facts) "http" (first (splitList "," $facts.http)))) | nindent 6 }}
      - name: CONSUL_HTTP_TOKEN_FILE
        value: /etc/usher/acl-token/token
      - name: NAME
        value: {{ printf "%s-%s" $root.Release.Namespace $name }}
      - name: AUTH_METHOD
        value: {{ $facts.login }}
      - name: SELECTOR
        value: {{ include "usher.bindingSelector" $root | quote }}
      - name: RULES
        value: |
          {{- include "usher.policy" (list $root $facts) | nindent 10 }}
      resources:
        requests:
          cpu: 50m
          memory: 64Mi
        limits:
          memory: 128Mi
      securityContext:
        {{- toYaml $root.Values.securityContext | nindent 8 }}
      volumeMounts:
      - name: acl-token
        mountPath: /etc/usher/acl-token
        readOnly: true
      {{- if $facts.ca }}
      - name: consul-ca
        mountPath: /etc/usher/consul-ca
        readOnly: true
      {{- end }}
    volumes:
    - name: acl-token
      secret:
        secretName: {{ $secret }}
        defaultMode: 288
        items:
        - key: {{ $key }}
          path: token
    {{- if $facts.ca }}
    {{- include "usher.consulCAVolume" (list $root $facts) | nindent 4 }}
    {{- end }}
{{- end }}

{{- /* The image of the Job: given, in the values of the Consul chart, or what Consul's servers run. (list . facts) */ -}}
{{- define "usher.aclSetupImage" -}}
{{- $root := index . 0 -}}
{{- $facts := index . 1 -}}
{{- $image := $root.Values.consul.aclSetup.image | default (dig "global" "image" "" $root.Values.AsMap) -}}
{{- if not $image -}}
{{- range dig "spec" "template" "spec" "containers" list (lookup "apps/v1" "StatefulSet" $facts.namespace (printf "%s-server" $facts.prefix)) -}}
{{- if eq .name "consul" }}{{ $image = .image }}{{ end -}}
{{- end -}}
{{- end -}}
{{- required "consul.aclSetup.enabled: the values have no global.image, and Helm found no servers of Consul in the cluster; set consul.aclSetup.image to an image that has the consul command" $image -}}
{{- end -}}

{{- /* Whom a binding rule gives Usher's role. */ -}}
{{- define "usher.bindingSelector" -}}
serviceaccount.name=="{{ include "usher.serviceAccount" . }}" and serviceaccount.namespace=="{{ .Release.Namespace }}"
{{- end -}}
