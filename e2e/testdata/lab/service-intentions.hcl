Kind = "service-intentions"
Name = "static-server"

Sources = [
  {
    Name   = "ingress-gateway"
    Action = "allow"
  }
]
