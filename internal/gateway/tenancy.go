package gateway

import (
	"cmp"
	"net/url"
)

// DefaultTenancy is Consul's name of its default namespace and of its default partition. The model writes both as "".
const DefaultTenancy = "default"

// OmitDefault returns the name of a namespace or partition as the model has it: "" for the default one.
func OmitDefault(name string) string {
	if name == DefaultTenancy {
		return ""
	}
	return name
}

// OrDefault returns the name of a namespace or partition as Consul has it: "default" for the default one.
func OrDefault(name string) string { return cmp.Or(name, DefaultTenancy) }

// OmitDefaults returns the name with OmitDefault for its namespace and partition.
func (n ServiceName) OmitDefaults() ServiceName {
	return ServiceName{n.Name, OmitDefault(n.Namespace), OmitDefault(n.Partition)}
}

// OrDefaults returns the name with OrDefault for its namespace and partition.
func (n ServiceName) OrDefaults() ServiceName {
	return ServiceName{n.Name, OrDefault(n.Namespace), OrDefault(n.Partition)}
}

// SameTenancy reports whether two names are in the same namespace and partition.
func (n ServiceName) SameTenancy(other ServiceName) bool {
	return OrDefault(n.Namespace) == OrDefault(other.Namespace) && OrDefault(n.Partition) == OrDefault(other.Partition)
}

// SPIFFEID returns the identity that a service has in the mesh
// (https://developer.hashicorp.com/consul/docs/secure-mesh/certificate/built-in).
func (n ServiceName) SPIFFEID(trustDomain, datacenter string) string {
	path := "/ns/" + OrDefault(n.Namespace) + "/dc/" + datacenter + "/svc/" + n.Name
	if partition := OmitDefault(n.Partition); partition != "" {
		path = "/ap/" + partition + path
	}
	return (&url.URL{Scheme: "spiffe", Host: trustDomain, Path: path}).String()
}
