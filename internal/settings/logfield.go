package settings

// LogFieldNames are the names that a format can have its fields by, in the order of
// their documentation. What each is to Envoy is in the package listeners.
var LogFieldNames = fieldNames()

// LogField is a field of an access log that has a name.
type LogField struct {
	Name    string
	Meaning string
}

// LogFields describes the fields. Those that Consul's default format has,
// too, are called what they are there.
var LogFields = []LogField{
	{"start_time", "when the request or the connection began"},
	{"client_address", "the client: address and port"},
	{"client_ip", "the client's address alone"},
	{"client_port", "the client's port"},
	{"balancer_address", "whoever connected: the balancer, with PROXY protocol"},
	{"gateway_address", "the address that the client connected to; with PROXY protocol the balancer's"},
	{"x_forwarded_for", "what the service gets as X-Forwarded-For"},
	{"tls_version", "of the connection to the gateway, such as TLSv1.3"},
	{"tls_cipher", "of the connection to the gateway"},
	{"requested_server_name", "the server name (SNI) that the client asked for"},
	{"client_certificate_subject", "of the client's certificate"},
	{"client_certificate_issuer", "of the client's certificate"},
	{"client_certificate_serial", "of the client's certificate"},
	{"client_certificate_sha256", "the fingerprint of the client's certificate"},
	{"protocol", "HTTP/1.1, HTTP/2"},
	{"method", "of the request"},
	{"authority", "the request's host"},
	{"path", "with the query string"},
	{"user_agent", "of the request"},
	{"referer", "of the request"},
	{"request_id", "X-Request-Id"},
	{"response_code", "the status; 0 if there is none"},
	{"response_code_details", "who answered, and why"},
	{"response_flags", "Envoy's words for what went wrong"},
	{"grpc_status", "of a gRPC call"},
	{"route_name", "of the route"},
	{"service", "the cluster that it went to"},
	{"service_address", "the instance that it went to"},
	{"attempts", "how often it was tried; 2 is one retry"},
	{"upstream_failure", "why the connection to the instance failed"},
	{"bytes_received", "of the body, or of a connection"},
	{"bytes_sent", "of the body, or of a connection"},
	{"duration", "milliseconds from the first byte of the request to the last of the answer"},
	{"request_duration", "milliseconds until the whole request was there"},
	{"service_duration", "milliseconds until the service began to answer"},
	{"connection_id", "of the client's connection"},
	{"connection_termination_details", "why Envoy ended the connection"},
}

func fieldNames() []string {
	names := make([]string, len(LogFields))
	for i, f := range LogFields {
		names[i] = f.Name
	}
	return names
}
