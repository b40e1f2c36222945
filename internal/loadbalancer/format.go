package loadbalancer

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/usherproxy/usher/internal/settings"
)

// proxyState is whether a load balancer sends PROXY headers to a port.
type proxyState string

// The states. The record has them with these words.
const (
	proxyUnset   proxyState = ""        // no annotation says anything about it
	proxyOff     proxyState = "off"     // it sends no headers
	proxyOn      proxyState = "on"      // it sends headers
	proxyMixed   proxyState = "mixed"   // some ports that lead to the listener get headers, and others do not
	proxyUnknown proxyState = "unknown" // the annotations are invalid, or contradict each other
)

// parsedValue is what one annotation says about one port of the Service.
type parsedValue struct {
	state   proxyState
	version settings.Version // where it is on; empty if it is not known
	problem string           // what is wrong with the value, and what to do; empty if it is valid
}

// Format is how a cloud writes into an annotation whether it sends PROXY headers.
type Format struct {
	On         []Value      // the values that switch headers on
	Off        []string     // the values that switch them off
	Ports      *PortList    // the value can be a list of ports, too; nil: it cannot
	Otherwise  Unrecognized // what the cloud does with any other value
	IgnoreCase bool
	// Location says as Markdown where in the annotation the value is, and extract finds it there; found is false if
	// there is nothing about the port. Without them, the value is the whole annotation.
	Location string
	extract  func(value string, port corev1.ServicePort) (item string, found bool, err error)
	PerPort  bool // the value is about single ports, though it is no PortList
	// PersistsWhenRemoved says that the load balancer stays as it was when the annotation is removed.
	PersistsWhenRemoved bool
	// ambiguous are values that are on for one controller of the cloud and not for another one.
	ambiguous []string
}

// Value is a value that switches headers on.
type Value struct {
	Text    string
	Version settings.Version // empty if it is not known
}

// PortList is what a list of ports in an annotation means.
type PortList struct {
	Version   settings.Version // what is sent to the ports in the list; empty if it is not known
	OthersOff bool             // other ports are off, whatever the next annotations say
	NodePorts bool             // the list contains nodePorts
}

// Unrecognized is what a cloud does with a value that is not in its row.
type Unrecognized struct {
	Doc     string // what happens to the value, for the table of the page
	problem string // the same for a problem, with a verb for the value
	state   proxyState
}

// What clouds do with such values.
var (
	ignored      = Unrecognized{"is ignored", "the cloud ignores %.64q", proxyUnset}
	countsAsOff  = Unrecognized{"counts as off", "the cloud treats %.64q as off", proxyOff}
	undocumented = Unrecognized{"is not documented", "the cloud does not document %.64q", proxyUnknown}
	refused      = Unrecognized{
		"is refused and leaves the load balancer as it is",
		"the cloud refuses %.64q and does not change the load balancer", proxyUnknown,
	}
	versionDependent = Unrecognized{
		"is read differently by different releases of the controller",
		"releases of the cloud's controller differ in what %.64q means", proxyUnknown,
	}
)

// parse returns what the value of an annotation says about a port.
func (f Format) parse(value string, port corev1.ServicePort) parsedValue {
	if f.Ports != nil {
		return f.parsePorts(value, port)
	}
	if f.extract != nil {
		item, found, err := f.extract(value, port)
		switch {
		case err != nil:
			return parsedValue{state: proxyUnknown, problem: err.Error()}
		case !found:
			return parsedValue{}
		}
		value = item
	}
	text := value
	if f.IgnoreCase {
		text = strings.ToLower(text)
	}
	if i := f.indexOn(text); i >= 0 {
		return parsedValue{state: proxyOn, version: f.On[i].Version}
	}
	switch {
	case slices.Contains(f.Off, text):
		return parsedValue{state: proxyOff}
	case slices.Contains(f.ambiguous, value):
		return f.unrecognized(versionDependent, value)
	}
	return f.unrecognized(f.Otherwise, value)
}

// unrecognized returns the meaning of a value that is not in the row.
func (f Format) unrecognized(u Unrecognized, value string) parsedValue {
	return parsedValue{state: u.state, problem: fmt.Sprintf(u.problem+"; use %s", value, f.expected())}
}

func (f Format) indexOn(text string) int {
	return slices.IndexFunc(f.On, func(v Value) bool { return v.Text == text })
}

// parsePorts is parse for a list of ports. A value that switches headers off leaves the port to the next annotation.
func (f Format) parsePorts(value string, port corev1.ServicePort) parsedValue {
	number := port.Port
	if f.Ports.NodePorts {
		number = port.NodePort
	}
	ports, ok := parsePortNumbers(value)
	switch {
	case slices.Contains(f.Off, value):
		return parsedValue{}
	case f.indexOn(value) >= 0 || ok && slices.Contains(ports, number):
		return parsedValue{state: proxyOn, version: f.Ports.Version}
	case !ok:
		return f.unrecognized(f.Otherwise, value)
	case f.Ports.OthersOff:
		return parsedValue{state: proxyOff}
	}
	return parsedValue{}
}

// expected names the values that have a meaning.
func (f Format) expected() string {
	var all []string
	for _, v := range f.On {
		all = append(all, strconv.Quote(v.Text))
	}
	for _, text := range f.Off {
		all = append(all, strconv.Quote(text))
	}
	switch {
	case f.Ports != nil && f.Ports.NodePorts:
		all = append(all, `nodePorts of the Service, such as "30080,30443"`)
	case f.Ports != nil:
		all = append(all, `ports of the Service, such as "80,443"`)
	case len(f.Off) == 0 && !f.PersistsWhenRemoved:
		return strings.Join(all, ", ") + ", or remove the annotation"
	}
	return joined(all, "or")
}

// parsePortNumbers reads a list of ports, which may be empty; false: it is none.
func parsePortNumbers(list string) ([]int32, bool) {
	var ports []int32
	for item := range strings.SplitSeq(list, ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		n, err := strconv.ParseUint(item, 10, 16)
		if err != nil || n == 0 {
			return nil, false
		}
		ports = append(ports, int32(n))
	}
	return ports, true
}

// boolean is the format of controllers that use Go's strconv.ParseBool.
func boolean(version settings.Version, otherwise Unrecognized) Format {
	return Format{
		On: []Value{{"true", version}, {"1", version}}, Off: []string{"false", "0"}, Otherwise: otherwise,
		extract: func(value string, _ corev1.ServicePort) (string, bool, error) {
			if on, err := strconv.ParseBool(value); err == nil {
				return strconv.FormatBool(on), true, nil
			}
			return value, true, nil
		},
	}
}

// attribute is the format of one attribute in a list: "name=true,other=…".
func attribute(name string, version settings.Version, otherwise Unrecognized) Format {
	return Format{
		On: []Value{{name + "=true", version}}, Off: []string{name + "=false"}, Otherwise: otherwise, Location: "in the list",
		extract: func(list string, _ corev1.ServicePort) (string, bool, error) {
			value, found := attributeIn(list, name)
			return name + "=" + value, found && value != "", nil
		},
	}
}

// attributeIn returns the value of one attribute in a list.
func attributeIn(list, name string) (string, bool) {
	for item := range strings.SplitSeq(list, ",") {
		if key, value, ok := strings.Cut(item, "="); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value), true
		}
	}
	return "", false
}

// ibmFeature finds the name of a feature in a list, in which case and spaces do not matter.
func ibmFeature(value string, _ corev1.ServicePort) (string, bool, error) {
	const name, excluded = "proxy-protocol", "nlb"
	list := strings.Split(strings.ToLower(strings.ReplaceAll(value, " ", "")), ",")
	found := slices.Contains(list, name)
	if found && slices.Contains(list, excluded) {
		return "", false, fmt.Errorf(refused.problem+"; use %q without %q", value, name, excluded)
	}
	return name, found, nil
}

// linodePort finds a member of a JSON object.
func linodePort(value string, _ corev1.ServicePort) (string, bool, error) {
	const key = "proxy-protocol"
	var object map[string]json.RawMessage
	if json.Unmarshal([]byte(value), &object) != nil {
		return "", false, fmt.Errorf(`%.64q is not a JSON object; use {%q: "v2"}`, value, key)
	}
	var text string
	if raw, found := object[key]; found && json.Unmarshal(raw, &text) != nil {
		return string(raw), true, nil // not a text, and therefore none of the values
	}
	return text, text != "", nil
}

// linodePortSetting returns a setting of a port in lower case; empty if there is none.
func linodePortSetting(s *corev1.Service, p corev1.ServicePort, key string) string {
	var object map[string]any
	_ = json.Unmarshal([]byte(s.Annotations[forPort(linode+"port-<port>", p.Port)]), &object)
	text, _ := object[key].(string)
	return strings.ToLower(text)
}
