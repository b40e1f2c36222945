# The smallest ACL policy for Usher in front of the gateway "ingress-gateway".
# One block "service … write" for each gateway that Usher serves: it is what
# the gateway's own certificates need, towards the mesh and towards clients.
service "ingress-gateway" {
  policy = "write"
}

# Not needed where Consul has its default DNS domain ("consul."), its default
# gRPC ports (8502, 8503) and an IPv4 address.
# agent_prefix "" {
#   policy = "read"
# }

# The services behind the gateway and their sidecars, and the nodes they run on.
# To show Usher fewer, name in place of the prefixes each service, its sidecar
# (web and web-sidecar-proxy), and each of their nodes and the gateway's. All
# services that the ingress-gateway entry names have to be among them: the port of
# one that is not is withheld. Of a "*" in it, those that are here are served.
service_prefix "" {
  policy = "read"
}
node_prefix "" {
  policy = "read"
}

# Only where services lead to cluster peers: the peers' root certificates.
# peering = "read"
