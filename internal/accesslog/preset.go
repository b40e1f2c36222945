package accesslog

import (
	"errors"
	"fmt"
	"maps"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/settings"
)

// ecsVersion is the release of the Elastic Common Schema that FormatECS follows
// (https://www.elastic.co/docs/reference/ecs/ecs-field-reference).
const ecsVersion = "9.4.0"

// ecsFormat is JSON by the Elastic Common Schema. Values without a field of the schema are labels. To the schema,
// the source of a connection through a load balancer is the client, and the balancer's address is the translated
// one.
func (p Params) ecsFormat() (logFormat, error) {
	if !p.Envoy.Expressions {
		return logFormat{}, tooOldError{errors.New(`format "ecs" uses CEL, which needs Envoy 1.32 or later; upgrade Envoy, or use "consul"`)}
	}
	type object = map[string]any
	const address = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"
	client := object{"address": address, "ip": address, "port": "%DOWNSTREAM_REMOTE_PORT%", "bytes": "%BYTES_RECEIVED%"}
	source := maps.Clone(client)
	if p.ProxyProtocol {
		source["nat"] = object{"ip": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"}
	}
	event := object{
		"kind": "event", "dataset": "usher.access", "start": "%START_TIME%",
		"duration": "%COMMON_DURATION(DS_CX_BEG:DS_CX_END:ns)%", "category": "network", "type": "connection",
	}
	labels := object{
		"response_flags":                    "%RESPONSE_FLAGS%",
		"connection_termination_details":    "%CONNECTION_TERMINATION_DETAILS%",
		"upstream_cluster":                  "%UPSTREAM_CLUSTER%",
		"upstream_host":                     "%UPSTREAM_HOST%",
		"upstream_attempts":                 "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
		"upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
	}
	for _, tlv := range p.TLVs {
		labels[tlv] = envoy.TLVOperator(tlv)
	}
	all := object{
		"@timestamp": "%START_TIME%",
		"ecs":        object{"version": ecsVersion},
		"event":      event,
		"service":    object{"name": p.Gateway.String(), "type": "ingress-gateway"},
		"network":    object{"transport": "tcp"},
		"client":     client,
		"source":     source,
		"destination": object{
			"ip": "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%", "port": "%DOWNSTREAM_LOCAL_PORT%",
			"bytes": "%BYTES_SENT%",
		},
		"labels": labels,
	}
	if p.TLS {
		all["tls"] = object{
			"version":          envoy.CEL(`re.extract(connection.tls_version, r'^TLSv(.*)$', r'\1')`),
			"version_protocol": "tls",
			"cipher":           "%DOWNSTREAM_TLS_CIPHER%",
			"client": object{
				"server_name": "%REQUESTED_SERVER_NAME%", "subject": "%DOWNSTREAM_PEER_SUBJECT%", "issuer": "%DOWNSTREAM_PEER_ISSUER%",
				"hash": object{"sha256": "%DOWNSTREAM_PEER_FINGERPRINT_256%"},
			},
		}
	}
	if p.HTTP {
		event["duration"], event["category"], event["type"] = "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:ns)%", "web", "access"
		labels["response_code_details"], labels["route_name"] = "%RESPONSE_CODE_DETAILS%", "%ROUTE_NAME%"
		labels["x_forwarded_for"], labels["upstream_service_time"] = "%REQ(X-FORWARDED-FOR)%", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"
		all["network"].(object)["protocol"] = "http"
		all["http"] = object{
			"version": envoy.CEL(`re.extract(request.protocol, r'^HTTP/(.*)$', r'\1')`),
			"request": object{
				"method": "%REQ(:METHOD)%", "id": "%REQ(X-REQUEST-ID)%", "referrer": "%REQ(REFERER)%",
				"body": object{"bytes": "%BYTES_RECEIVED%"},
			},
			"response": object{"status_code": "%RESPONSE_CODE%", "body": object{"bytes": "%BYTES_SENT%"}},
		}
		all["url"] = object{
			"original": pathOperator,
			"path":     "%REQ_WITHOUT_QUERY(X-ENVOY-ORIGINAL-PATH?:PATH)%",
			"domain":   envoy.CEL(`re.extract(request.host, r'^(\[[^\]]*\]|[^:]*)', r'\1')`),
		}
		all["user_agent"] = object{"original": "%REQ(USER-AGENT)%"}
	}
	out, err := objectFormat(all)
	out.sparse = true
	return out, err
}

// combinedHead is how a line of Apache's combined log format begins
// (https://httpd.apache.org/docs/2.4/logs.html#combined).
const combinedHead = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% - - [%START_TIME(%d/%b/%Y:%H:%M:%S %z)%] "

// originalPath is the header in which Envoy keeps the path of a request that a route rewrites.
const originalPath = "x-envoy-original-path"

// combinedFormat is Apache's combined log format. A connection of a tcp listener has no request, and no status.
func (p Params) combinedFormat() (logFormat, error) {
	if !p.HTTP {
		return lineFormat(combinedHead + `"-" 000 %BYTES_SENT% "-" "-"`), nil
	}
	if !p.Envoy.Expressions {
		return logFormat{}, tooOldError{errors.New(`format "combined" uses CEL, which needs Envoy 1.32 or later; upgrade Envoy, or use "consul"`)}
	}
	path := redactedText
	if !p.redactsHeader(originalPath) {
		path = envoy.CEL(fmt.Sprintf(`'%s' in request.headers ? %s : %s`, originalPath,
			p.unquotedURL("request.headers['"+originalPath+"']"), p.unquotedURL("request.path")))
	}
	return lineFormat(combinedHead + `"` + envoy.CEL(unquoted("request.method", "")) + " " + path +
		` %PROTOCOL%" %RESPONSE_CODE% %BYTES_SENT% "` + p.quotedHeader("referer") + `" "` + p.quotedHeader("user-agent") +
		`"`), nil
}

// combinedRejected is the line of a rejected connection. The reason is at the place of the User-Agent.
func combinedRejected(reason string) string {
	return combinedHead + `"-" 000 0 "-" "rejected: ` + reason + "\"\n"
}

// unquoted cuts off a text before the first quote or control character, and before any of some more characters.
func unquoted(value, more string) string {
	return fmt.Sprintf(`re.extract(%s, r'^([^\x00-\x1f"\\\x7f%s]*)', r'\1')`, value, more)
}

// unquotedURL is a path inside quotes, with its query string if that is logged.
func (p Params) unquotedURL(value string) string {
	if p.Settings.RedactQuery == settings.Yes {
		return unquoted(value, "?")
	}
	return unquoted(value, "")
}

// quotedHeader is a request header inside quotes.
func (p Params) quotedHeader(name string) string {
	if p.redactsHeader(name) {
		return redactedText
	}
	value := fmt.Sprintf("request.headers['%s']", name)
	if name == "referer" {
		value = p.unquotedURL(value)
	} else {
		value = unquoted(value, "")
	}
	return envoy.CEL(fmt.Sprintf("'%s' in request.headers ? %s : '-'", name, value))
}
