# The smallest ACL policy for Usher with the gateway "ingress-gateway".

# Usher needs "service:write" on each gateway that it serves, because Consul
# issues the gateway's certificates for the mesh and for clients only with this
# right. Add one block for each gateway.
service "ingress-gateway" {
  policy = "write"
}

# Usher needs this block only if Consul has another DNS domain than "consul.",
# other gRPC ports than 8502 and 8503, no IPv4 address, or is of 2.0 or later,
# which normalizes paths.
# agent_prefix "" {
#   policy = "read"
# }

# Usher reads the services behind the gateway, their sidecars, and the nodes
# that they run on. To show it fewer, replace the prefixes with names: each
# service, its sidecar (web and web-sidecar-proxy), the nodes of both and the
# gateway's node. Include every service that the ingress-gateway entry names:
# Usher holds back the port of a service that it may not read. For the service
# "*" in the entry, Usher serves the services that it may read.
service_prefix "" {
  policy = "read"
}
node_prefix "" {
  policy = "read"
}

# Usher needs this line only if services lead to cluster peers. It reads the
# root certificates of a peer from the peering.
# peering = "read"
