package listeners

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/usherproxy/usher/internal/gateway"
)

// domainsOf returns the domains of each service's virtual host: its hosts, or else <service>.ingress.*; then each of
// them with the listener's port, which clients write into the Host header unless it is the scheme's default.
//
// Envoy rejects a route configuration that has a domain twice. A host with a port that a service names wins over one
// that another service would get by this rule.
func domainsOf(p port) ([][]string, error) {
	owner := map[string]int{}
	key := func(s portService, domain string) string {
		return routeName(p, s.settings) + " " + strings.ToLower(domain)
	}
	domains := make([][]string, len(p.services))
	for i, s := range p.services {
		for _, h := range hostsOf(s) {
			if first, taken := owner[key(s, h)]; taken {
				if first == i {
					continue
				}
				return nil, fmt.Errorf("services %s and %s both have the host %q; remove it from one of them",
					p.services[first].service.Service, s.service.Service, h)
			}
			owner[key(s, h)] = i
			domains[i] = append(domains[i], h)
		}
	}
	for i, s := range p.services {
		for _, h := range domains[i] {
			withPort := net.JoinHostPort(h, strconv.Itoa(p.number))
			if _, taken := owner[key(s, withPort)]; taken || !portless(h) {
				continue
			}
			owner[key(s, withPort)] = i
			domains[i] = append(domains[i], withPort)
		}
	}
	return domains, nil
}

// hostsOf returns the hosts of a service, by default the one that Consul's DNS has for it
// (https://developer.hashicorp.com/consul/docs/reference/dns).
func hostsOf(s portService) []string {
	name := s.service.Service
	switch {
	case len(s.service.Hosts) > 0:
		return s.service.Hosts
	case gateway.OmitDefault(name.Namespace) != "":
		return []string{fmt.Sprintf("%s.ingress.%s.*", name.Name, name.Namespace)}
	}
	return []string{name.Name + ".ingress.*"}
}

// portless reports whether a port can be added to a host.
func portless(host string) bool {
	_, _, err := net.SplitHostPort(host)
	var addr *net.AddrError
	return errors.As(err, &addr) && addr.Err == "missing port in address"
}
