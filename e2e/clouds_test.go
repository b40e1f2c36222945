//go:build e2e

package e2e

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	corev1 "k8s.io/api/core/v1"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/apiserver"
	"github.com/usherproxy/usher/internal/testing/services"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestCloudsThatDoNotHonourAnAnnotation gives Services annotations that switch PROXY
// headers on, and load balancers that do what the clouds do with these Services: most
// clouds ignore or refuse them, for two reasons each. Each Service has a gateway with
// an Envoy, and a load balancer. From before the change until long after the grace
// period no request fails, and Usher says why the annotation does nothing.
func TestCloudsThatDoNotHonourAnAnnotation(t *testing.T) {
	t.Parallel()
	s := startCloudsStory(t)
	clouds := chosenClouds(t)
	s.createAll(t, clouds)
	var honoured, others []*cloud
	for _, c := range clouds {
		s.start(t, c, s.usher)
		if c.state == "on" {
			honoured = append(honoured, c)
		} else {
			others = append(others, c)
		}
	}
	s.annotate(t, 8, others...)
	s.annotate(t, 8, honoured...)
	s.waitFor(t, time.Second/2, honoured...) // the cloud takes a moment
	for _, c := range honoured {
		c.balancer.SetHeader(t, c.header())
	}
	s.waitFor(t, 2*cloudsGrace, clouds...)
	for _, c := range clouds {
		t.Run(c.Name, func(t *testing.T) { s.wantAllServed(t, c) })
	}
}

// TestOutagesOfIgnoredAnnotations sends 300 requests a second to each of two Services
// that users have reported, whose load balancers ignore the annotation: from before it
// until long after the grace period. Then it does the same with Services whose
// annotation Usher has to believe, so that only connections show that it is ignored. No
// request fails, except at an Usher that does not look at them.
func TestOutagesOfIgnoredAnnotations(t *testing.T) {
	t.Parallel()
	s := startCloudsStory(t)
	reported, believed, unseen := s.startOutages(t)
	s.annotate(t, 300, reported...)
	s.waitFor(t, 2*cloudsGrace, reported...)
	for _, c := range reported {
		t.Run(c.Name, func(t *testing.T) { s.wantAllServed(t, c) })
	}

	s.annotate(t, 40, unseen)
	s.annotate(t, 300, believed...)
	s.WaitMode(t, unseen.pod.Host, "strict")
	strict := time.Now()
	s.waitFor(t, cloudsGrace, append(believed, unseen)...)
	for _, c := range believed {
		t.Run(c.Name+", ignored", func(t *testing.T) { s.wantAllServed(t, c) })
	}
	unseen.load.Stop()
	for _, r := range unseen.load.Answered {
		if r.Opened.After(strict) {
			t.Fatalf("without reports, a connection of %s was served, and the listener was strict since %s", r.Opened, strict)
		}
	}
	t.Logf("without reports: %d requests fail, and %d are answered", len(unseen.load.Failures), len(unseen.load.Answered))
	if len(unseen.load.Failures) == 0 {
		t.Error("without reports, no request fails either")
	}
}

// cloudsGrace is the grace period.
const cloudsGrace = 10 * time.Second

// cloudsStory is the lab with a gateway for each of many Services.
type cloudsStory struct {
	*lab.KubernetesLab
	usher *lab.Usher
	count int // of Services
}

// cloud is a Service, what its cloud does with it, and the way to its gateway.
type cloud struct {
	services.Case
	port  int    // of the listener that the case is about
	state string // of PROXY headers there, as the table has it
	// before are the annotations that the Service has from its beginning, which its cloud honours.
	before  map[string]string
	ignored bool // the load balancer sends no headers, although the table says that they are on

	number   int
	pod      *lab.Pod
	balancer *lab.HAProxy
	way      lab.Request
	load     *lab.Load
	probe    *lab.Load // health checks over HTTP; nil if there are none
}

// reportedByUsers matches Services that users have reported.
var reportedByUsers = regexp.MustCompile(`, F\d+, `)

// honouring are clouds whose first Service that is honoured is there for comparison.
var honouring = []string{"aws", "digitalocean", "openstack", "upcloud"}

// refusedLater are changes that a cloud refuses, so that its load balancer goes on to send headers: the annotation that
// is added to a Service, by case.
var refusedLater = map[string]string{
	"openstack, F4, X-Forwarded-For as well":                         "loadbalancer.openstack.org/x-forwarded-for",
	"aws, a classic load balancer, all ports and an attribute":       "service.beta.kubernetes.io/aws-load-balancer-target-group-attributes",
	"digitalocean, a load balancer that the controller has disowned": "service.kubernetes.io/do-loadbalancer-disown",
	"vultr, a load balancer that the controller does not touch":      "service.beta.kubernetes.io/vultr-loadbalancer-create",
}

// servicesOfClouds are the cases of the table.
func servicesOfClouds(t *testing.T) []services.Case {
	t.Helper()
	return services.Read(t, "../internal/loadbalancer/testdata/services")
}

// chosenClouds returns the Services that were reported, of each cloud two that are not honoured, and some others.
func chosenClouds(t *testing.T) []*cloud {
	t.Helper()
	var chosen []*cloud
	honoured, others := map[string]int{}, map[string]int{}
	for _, of := range servicesOfClouds(t) {
		c := &cloud{Case: of, port: 8080, state: of.State}
		if of.State == "on" && of.HTTPS != "" {
			c.port, c.state = 8443, of.HTTPS
		}
		count := others
		if c.state == "on" {
			count = honoured
		}
		name, _, _ := strings.Cut(c.Name, ", ")
		count[name]++
		switch {
		case reportedByUsers.MatchString(c.Name), c.state != "on" && count[name] <= 2, slices.Contains(honouring, name) && count[name] == 1:
			chosen = append(chosen, c)
		}
		if added := refusedLater[c.Name]; added != "" {
			later := *c
			later.Name, later.before = c.Name+", later", maps.Clone(c.Annotations)
			delete(later.before, added)
			chosen = append(chosen, &later)
		}
	}
	return chosen
}

// header is what the load balancer sends where headers are on.
func (c *cloud) header() lab.ProxyHeader {
	if c.Version == "v2" {
		return lab.SendV2
	}
	return lab.SendV1
}

// isProbed reports whether the load balancer's health checks are over HTTP, and without headers.
func (c *cloud) isProbed() bool { return strings.HasPrefix(c.Name, "azure, F7, ") }

// mode is the listener's mode in the end.
func (c *cloud) mode() string {
	switch {
	case c.isProbed() || c.ignored:
		return "permissive"
	case c.state == "on" || c.before != nil:
		return "strict"
	}
	return "off"
}

// namesNodePort reports whether an annotation names the node port.
func (c *cloud) namesNodePort(port int32) bool {
	return port != 0 && strings.Contains(fmt.Sprint(c.Annotations), fmt.Sprint(port))
}

// needsNodePort reports whether an annotation names one of the Service's node ports.
func (c *cloud) needsNodePort(t *testing.T) bool {
	t.Helper()
	return slices.ContainsFunc(c.Service(t).Spec.Ports, func(p corev1.ServicePort) bool { return c.namesNodePort(p.NodePort) })
}

// service is the name of the Service.
func (c *cloud) service() string { return fmt.Sprint("service-", c.number) }

func startCloudsStory(t *testing.T) *cloudsStory {
	t.Helper()
	s := &cloudsStory{KubernetesLab: lab.StartKubernetesLab(t)}
	_, _, err := s.Consul.Client.ConfigEntries().Set(&api.IngressGatewayConfigEntry{
		Kind: api.IngressGateway, Name: "ingress-gateway",
		Listeners: []api.IngressListener{
			{Port: 8080, Protocol: "http", Services: []api.IngressService{{Name: "static-server"}}},
			{Port: 8443, Protocol: "http", Services: []api.IngressService{{Name: "static-server"}}},
		},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.API.GrantCluster(t, string(apiserver.Usher), "system:aggregate-to-view") // to read all Services
	s.usher = s.startUsher(t, s.Control)
	return s
}

// startUsher starts an Usher for the Envoys of other hosts.
func (s *cloudsStory) startUsher(t *testing.T, h *lab.Host, args ...string) *lab.Usher {
	t.Helper()
	o := s.UsherOptions(t, h, cloudsGrace, append(args, "--insecure-plaintext")...)
	o.XDSAddr = h.Addr(18000)
	return lab.StartUsher(t, o)
}

// startOutages starts the gateways of Services that users have reported, of such whose annotation is believed and
// ignored, and of one of these whose Usher gets no reports.
func (s *cloudsStory) startOutages(t *testing.T) (reported, believed []*cloud, unseen *cloud) {
	t.Helper()
	for _, c := range servicesOfClouds(t) {
		switch c.Name {
		case "aws, F1, a network load balancer of the controller in Kubernetes, an attribute", "digitalocean, F3, a network load balancer":
			reported = append(reported, &cloud{Case: c, port: 8080, state: c.State})
		case "aws, EKS Auto Mode", "digitalocean, a proxy load balancer":
			c.Problem = "but connections come without a PROXY header" // Usher cannot know why
			believed = append(believed, &cloud{Case: c, port: 8080, state: c.State, ignored: true})
			unseen = &cloud{Case: c, port: 8080, state: c.State, ignored: true}
		}
	}
	if len(reported) != 2 || len(believed) != 2 {
		t.Fatalf("the table has %d reported Services and %d others, want 2 each", len(reported), len(believed))
	}
	for _, c := range append(reported, believed...) {
		s.create(t, c)
		s.start(t, c, s.usher)
	}
	s.create(t, unseen)
	s.start(t, unseen, s.startUsher(t, s.AddHost(t, "control2", "198.18.3.2"), "--connection-reports=false"))
	return reported, believed, unseen
}

// createAll creates the Services, those first that need a certain node port: the API server chooses the others.
func (s *cloudsStory) createAll(t *testing.T, clouds []*cloud) {
	t.Helper()
	for _, needed := range []bool{true, false} {
		for _, c := range clouds {
			if c.needsNodePort(t) == needed {
				s.create(t, c)
			}
		}
	}
}

// create creates the case's Service, without the annotations that the story adds.
func (s *cloudsStory) create(t *testing.T, c *cloud) {
	t.Helper()
	c.number = s.count
	s.count++
	service := c.Service(t)
	service.Name, service.Annotations = c.service(), c.before
	for j := range service.Spec.Ports {
		p := &service.Spec.Ports[j]
		p.Name = cmp.Or(p.Name, fmt.Sprint("port-", p.Port))
		if !c.namesNodePort(p.NodePort) {
			p.NodePort = 0 // the API server gives it one, because each is of one Service only
		}
	}
	s.API.Create(t, service)
	if c.Hostname != "" {
		s.API.SetHostname(t, c.service(), c.Hostname)
	}
}

// start starts the case's gateway, which an Usher serves, and its load balancer. Each load balancer has another address.
func (s *cloudsStory) start(t *testing.T, c *cloud, usher *lab.Usher) {
	t.Helper()
	c.pod = s.StartPodOf(t, c.service(), s.AddHost(t, fmt.Sprint("pod-", c.number), fmt.Sprintf("198.18.1.%d", c.number)), usher)
	ip := fmt.Sprintf("198.18.2.%d", c.number)
	s.Balancer.RunIP(t, fmt.Sprintf("address add %s/32 dev eth0", ip))
	h := &lab.Host{Namespace: s.Balancer.Namespace, Name: "balancer of " + c.service(), IP: netip.MustParseAddr(ip)}
	header := lab.SendNone
	if c.before != nil {
		header = c.header()
	}
	c.balancer = lab.StartHAProxy(t, lab.HAProxyOptions{Host: h, Targets: []*lab.Host{c.pod.Host}, Ports: []int{c.port}, Header: header})
	c.way = lab.Request{From: s.Client, To: h.Addr(c.port), Path: "/"}
}

// annotate adds the annotations to the Services, while each gateway gets this many requests a second.
func (s *cloudsStory) annotate(t *testing.T, rate int, clouds ...*cloud) {
	t.Helper()
	for _, c := range clouds {
		if c.before != nil {
			c.pod.Usher.WaitOutput(t, fmt.Sprintf("service=%s/%s port=%d mode=strict", apiserver.Namespace, c.service(), c.port))
		}
		lab.WaitStatus(t, c.way, 200)
		c.load = lab.StartLoadAt(t, c.way, rate)
		if c.isProbed() {
			c.probe = lab.StartLoadAt(t, lab.Request{From: s.AddHost(t, "probe", "198.18.3.1"), To: c.pod.Addr(c.port)}, rate)
		}
	}
	s.waitFor(t, time.Second/2, clouds...)
	for _, c := range clouds {
		s.API.AnnotateService(t, c.service(), c.Annotations)
	}
}

// waitFor waits until the gateways have answered the requests of a time.
func (s *cloudsStory) waitFor(t *testing.T, d time.Duration, clouds ...*cloud) {
	t.Helper()
	var loads []*lab.Load
	for _, c := range clouds {
		loads = append(loads, c.load)
	}
	lab.WaitForAll(t, loads, d)
}

// wantAllServed wants that no request has failed, that the listener has its mode, and that Usher says why.
func (s *cloudsStory) wantAllServed(t *testing.T, c *cloud) {
	t.Helper()
	s.wantSaid(t, c)
	c.load.WantNoFailures(t)
	if c.probe != nil {
		c.probe.WantNoFailures(t)
	}
	s.WaitModeAt(t, c.pod.Host, c.port, c.mode())
}

// wantSaid wants Usher to say of the Service what the case has, and nothing else; and where connections without headers
// come from that should have them.
func (s *cloudsStory) wantSaid(t *testing.T, c *cloud) {
	t.Helper()
	var want []string // parts of a line each
	if c.Problem != "" {
		want = append(want, c.Problem)
	}
	if c.probe != nil {
		want = append(want, c.probe.Target.From.IP.String())
	}
	testprocess.Eventually(t, fmt.Sprintf("Usher says %q", want), testprocess.ChangeDeadline, func() error {
		said := s.said(t, c)
		for _, text := range want {
			if !slices.ContainsFunc(said, func(s string) bool { return strings.Contains(s, text) }) {
				return errors.Join(fmt.Errorf("it says %q", said), s.usher.Alive())
			}
		}
		if len(said) != len(want) {
			return fmt.Errorf("it says more: %q", said)
		}
		return nil
	})
}

// said are the problems that the case's Service has now.
func (s *cloudsStory) said(t *testing.T, c *cloud) []string {
	t.Helper()
	var said []string
	for line := range strings.Lines(c.pod.Usher.Output(t)) {
		begin := strings.Index(line, `where="Kubernetes Service `+apiserver.Namespace+"/"+c.service()+":")
		if begin < 0 {
			continue
		}
		text := strings.ReplaceAll(line[begin:], `\"`, `"`)
		switch {
		case strings.Contains(line, "msg=problem "):
			said = append(said, text)
		case strings.Contains(line, `msg="problem over" `):
			said = slices.DeleteFunc(said, func(s string) bool { return s == text })
		}
	}
	return said
}
