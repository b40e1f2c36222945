# Usher's settings. Usher reads this file again when it changes; "systemctl restart" is not needed.
# Check it with "usher validate /etc/usher/usher.hcl".
#
# As it is, this file sets nothing: the listeners of all gateways are as Consul's own are, without PROXY protocol.
#
# This accepts connections to one gateway with and without a PROXY header. When the load balancer sends headers on all of
# them, change "permissive" to "strict".
#
# gateway "ingress-gateway" {
#   usher {
#     proxy_protocol { mode = "permissive" }
#   }
# }
#
# Settings for all gateways:
#
# usher {
#   proxy_protocol { mode = "permissive" }
# }
