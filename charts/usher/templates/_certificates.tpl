{{- /* The DNS names in the certificate of the xDS port, as YAML. */ -}}
{{- define "usher.xdsNames" -}}
{{- $name := include "usher.name" . -}}
{{- $names := list
  (printf "%s.%s.svc" $name .Release.Namespace)
  (printf "%s.%s.svc.%s" $name .Release.Namespace .Values.xds.clusterDomain)
  (printf "%s.%s" $name .Release.Namespace)
  $name -}}
{{- toYaml (concat $names .Values.xds.tls.dnsNames | uniq) -}}
{{- end -}}

{{- /* The Secret with the certificate of the xDS port; "" for plain text. */ -}}
{{- define "usher.xdsSecret" -}}
{{- $tls := .Values.xds.tls -}}
{{- if eq $tls.mode "secret" -}}
{{- required "xds.tls.secretName is empty; with xds.tls.mode=secret it names the Secret with the certificate of the xDS port" $tls.secretName -}}
{{- else if ne $tls.mode "none" -}}
{{- include "usher.name" . }}-xds-tls
{{- end -}}
{{- end -}}

{{- /*
usher.xdsAuthority is the CA that signs the certificate of the xDS port, as YAML: cert and key. With consul-ca it is
Consul's. With chart it is the one of the last release: the gateways' pods trust it, so it has to stay the same.
(list . facts)
*/ -}}
{{- define "usher.xdsAuthority" -}}
{{- $root := index . 0 -}}
{{- $facts := index . 1 -}}
{{- if eq $root.Values.xds.tls.mode "consul-ca" -}}
{{- include "usher.consulAuthority" . -}}
{{- else -}}
{{- $last := lookup "v1" "Secret" $root.Release.Namespace (printf "%s-xds-ca" (include "usher.name" $root)) -}}
{{- if $last -}}
{{- toYaml (dict "cert" (index $last.data "tls.crt" | b64dec) "key" (index $last.data "tls.key" | b64dec)) -}}
{{- else -}}
{{- $ca := genCAWithKey (printf "%s.%s xDS CA" (include "usher.name" $root) $root.Release.Namespace | trunc 64) 3650 (genPrivateKey "ecdsa") -}}
{{- toYaml (dict "cert" $ca.Cert "key" $ca.Key) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "usher.consulAuthority" -}}
{{- $root := index . 0 -}}
{{- $facts := index . 1 -}}
{{- $v := $root.Values.AsMap -}}
{{- if not $facts.ca.secretName -}}
{{- fail "xds.tls.mode=consul-ca needs Consul's CA in Secrets, and these values name none; use another mode" -}}
{{- end -}}
{{- $keyName := dig "global" "tls" "caKey" "secretName" "" $v | default (printf "%s-ca-key" $facts.prefix) -}}
{{- $keyKey := dig "global" "tls" "caKey" "secretKey" "" $v | default "tls.key" -}}
{{- $cert := dig "data" $facts.ca.secretKey "" (lookup "v1" "Secret" $root.Release.Namespace $facts.ca.secretName) -}}
{{- $key := dig "data" $keyKey "" (lookup "v1" "Secret" $facts.namespace $keyName) -}}
{{- if not (and $cert $key) -}}
{{- fail (printf "xds.tls.mode=consul-ca: Helm found no %s in the Secret %s/%s, or no %s in the Secret %s/%s; install Consul first, and let Helm talk to the cluster (helm template does not), or use another mode"
  $facts.ca.secretKey $root.Release.Namespace $facts.ca.secretName $keyKey $facts.namespace $keyName) -}}
{{- end -}}
{{- toYaml (dict "cert" ($cert | b64dec) "key" ($key | b64dec)) -}}
{{- end -}}

{{- /*
usher.xdsCertificate is the certificate of the xDS port, as YAML: cert, key and issued. The one of the last release
stays if it is from the same CA, for the same names, and less than a year old; it is valid for three.
(list . authority)
*/ -}}
{{- define "usher.xdsCertificate" -}}
{{- $root := index . 0 -}}
{{- $authority := index . 1 -}}
{{- $last := lookup "v1" "Secret" $root.Release.Namespace (include "usher.xdsSecret" $root) -}}
{{- $for := include "usher.xdsCertificateFor" . -}}
{{- $now := now | unixEpoch | int64 -}}
{{- $issued := dig "metadata" "annotations" "usher/issued" "0" $last | int64 -}}
{{- if and $last (eq (dig "metadata" "annotations" "usher/for" "" $last) $for) (lt (sub $now $issued) 31536000) -}}
{{- toYaml (dict "cert" (index $last.data "tls.crt" | b64dec) "key" (index $last.data "tls.key" | b64dec) "issued" ($issued | toString)) -}}
{{- else -}}
{{- $ca := buildCustomCert ($authority.cert | b64enc) ($authority.key | b64enc) -}}
{{- $names := include "usher.xdsNames" $root | fromYamlArray -}}
{{- $made := genSignedCertWithKey (include "usher.name" $root) $root.Values.xds.tls.ipAddresses $names 1095 $ca (genPrivateKey "ecdsa") -}}
{{- toYaml (dict "cert" $made.Cert "key" $made.Key "issued" ($now | toString)) -}}
{{- end -}}
{{- end -}}

{{- /* What a certificate is for: another CA or other names need another one. (list . authority) */ -}}
{{- define "usher.xdsCertificateFor" -}}
{{- $root := index . 0 -}}
{{- $names := include "usher.xdsNames" $root -}}
{{- printf "%s %s %s" (index . 1).cert $names (toJson $root.Values.xds.tls.ipAddresses) | sha256sum -}}
{{- end -}}
