package listeners

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/usherproxy/usher/internal/gateway"
)

// domainsOf gives the domains of each row's virtual host: its hosts, or else
// <service>.ingress.*; then each of them with the listener's port, for clients
// write it into the Host header where it is not the scheme's own.
//
// Envoy refuses a route configuration with a domain twice. Where a row has a
// host with a port that another row would get by this rule, the row that says
// so keeps it.
func domainsOf(p port) ([][]string, error) {
	owner := map[string]int{}
	key := func(r portService, domain string) string {
		return routeName(p, r.settings) + " " + strings.ToLower(domain)
	}
	domains := make([][]string, len(p.services))
	for i, r := range p.services {
		for _, h := range hostsOf(r) {
			if first, taken := owner[key(r, h)]; taken {
				if first == i {
					continue
				}
				return nil, fmt.Errorf("services %s and %s both have the host %q; remove it from one of them",
					p.services[first].service.Service, r.service.Service, h)
			}
			owner[key(r, h)] = i
			domains[i] = append(domains[i], h)
		}
	}
	for i, r := range p.services {
		for _, h := range domains[i] {
			withPort := net.JoinHostPort(h, strconv.Itoa(p.number))
			if _, taken := owner[key(r, withPort)]; taken || !portless(h) {
				continue
			}
			owner[key(r, withPort)] = i
			domains[i] = append(domains[i], withPort)
		}
	}
	return domains, nil
}

// hostsOf gives the hosts of a row, by default the one that Consul's DNS
// answers for the service (https://developer.hashicorp.com/consul/docs/reference/dns).
func hostsOf(r portService) []string {
	name := r.service.Service
	switch {
	case len(r.service.Hosts) > 0:
		return r.service.Hosts
	case gateway.OmitDefault(name.Namespace) != "":
		return []string{fmt.Sprintf("%s.ingress.%s.*", name.Name, name.Namespace)}
	}
	return []string{name.Name + ".ingress.*"}
}

// portless says whether a host is one that a port can be added to.
func portless(host string) bool {
	_, _, err := net.SplitHostPort(host)
	var addr *net.AddrError
	return errors.As(err, &addr) && addr.Err == "missing port in address"
}
