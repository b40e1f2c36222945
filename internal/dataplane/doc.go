// Package dataplane is the gRPC server that an unmodified consul-dataplane connects to instead of Consul's. It passes every
// call on to Consul, with three exceptions: the discovery streams of ingress gateways are Usher's, their Envoys get Usher's
// bootstrap, and consul-dataplane does not learn the addresses of Consul's servers, which would lead it past Usher.
//
//	consul-dataplane --> Server --+-- every other call ------------> Consul's gRPC port, shared connections
//	                              +-- the streams of gateways -----> xds.Server, one connection in this process for each
//
// Nothing about who may connect is decided here: a caller's token is in the metadata of its calls, and reaches Consul or
// the xds.Server unchanged.
package dataplane
