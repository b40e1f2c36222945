package loadbalancer

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/usherproxy/usher/internal/settings"
)

// signal is whether a balancer sends PROXY headers to a port.
type proxyState uint8

// The signals.
const (
	proxyUnset   proxyState = iota // nothing is said of it
	proxyOff                       // it sends none
	proxyOn                        // it sends them
	proxyMixed                     // it sends them on some of the ways to the listener, and none on others
	proxyUnknown                   // nobody can tell
)

// signals are the words for them in the record.
var proxyStateNames = [...]string{proxyUnset: "", proxyOff: "off", proxyOn: "on", proxyMixed: "mixed", proxyUnknown: "unclear"}

// MarshalText implements encoding.TextMarshaler.
func (s proxyState) MarshalText() ([]byte, error) { return []byte(proxyStateNames[s]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *proxyState) UnmarshalText(text []byte) error {
	n := slices.Index(proxyStateNames[:], string(text))
	if n < 0 {
		return fmt.Errorf("%q is no signal", text)
	}
	*s = proxyState(n)
	return nil
}

// verdict is what one annotation says of one port of the Service.
type parsedValue struct {
	state    proxyState
	version  settings.Version // where it is on; "" if that is not known
	problem  string           // what is wrong with the value, and what to do; "" if nothing is
	sticky   bool             // where it is on: it stays so when the annotation is removed
	offValue string           // where it is kept: the value that switches it off; "" if none does
}

// said is an annotation as a Service has it, and the port that it is asked of.
type said struct {
	value string
	port  corev1.ServicePort
}

// form is how a cloud writes in an annotation whether it sends PROXY headers.
type form interface {
	read(s said) parsedValue
	describe() Description
}

// Description is what documentation says of an annotation's values.
type Description struct {
	On, Off   string // the values, as Markdown
	Otherwise string // what the cloud does with any other
	Sends     string // the versions of the protocol
	PerPort   bool   // it can say so of single ports
	Kept      bool   // removing it leaves the balancer as it was
}

// unknownValue is what a cloud does with a value that is none of its own.
type Unrecognized uint8

const (
	// ignored: it goes on as if nothing had been said.
	ignored Unrecognized = iota
	// countsAsOff: it switches the headers off.
	countsAsOff
	// refused: it does not touch the balancer, which stays as it was.
	refused
	// differing: one release does this and another one that.
	versionDependent
	// untold: nobody has written down what it does.
	undocumented
)

func (u Unrecognized) String() string {
	return [...]string{
		"is ignored", "counts as off", "is refused, and the balancer stays as it was", "depends on the release of the controller", "is in no documentation",
	}[u]
}

// verdict says what becomes of a value that is none of those that use names.
func (u Unrecognized) verdict(value, use string) parsedValue {
	v := parsedValue{problem: fmt.Sprintf("%q %s; use %s", clip(value), u, use)}
	switch u {
	case ignored:
	case countsAsOff:
		v.state = proxyOff
	default:
		v.state = proxyUnknown
	}
	return v
}

// clip keeps a value short enough for a line.
func clip(value string) string {
	const most = 64
	if len(value) <= most {
		return value
	}
	return value[:most] + "…"
}

// word is a value that means on.
type word struct {
	value string
	sends settings.Version
}

// words are exact values.
type words struct {
	on    []word
	off   []string
	fold  bool // small letters and capitals are the same
	other Unrecognized
	// vague are values that one controller of the cloud's takes for on and another
	// one does not.
	vague []string
	// kept says that the balancer stays as it was when the annotation is removed.
	kept bool
}

func (w words) read(s said) parsedValue {
	value := s.value
	if w.fold {
		value = strings.ToLower(value)
	}
	for _, word := range w.on {
		if value == word.value {
			v := parsedValue{state: proxyOn, version: word.sends, sticky: w.kept}
			if w.kept && len(w.off) > 0 {
				v.offValue = w.off[0]
			}
			return v
		}
	}
	if slices.Contains(w.off, value) {
		return parsedValue{state: proxyOff}
	}
	if slices.Contains(w.vague, value) {
		return versionDependent.verdict(s.value, w.uses())
	}
	return w.other.verdict(s.value, w.uses())
}

func (w words) uses() string {
	var all []string
	for _, word := range w.on {
		all = append(all, strconv.Quote(word.value))
	}
	for _, o := range w.off {
		all = append(all, strconv.Quote(o))
	}
	if len(w.off) == 0 && !w.kept {
		return strings.Join(all, ", ") + ", or remove the annotation"
	}
	return strings.Join(all, ", ")
}

func (w words) describe() Description {
	d := Description{Off: codes(w.off), Otherwise: w.other.String()}
	var values []string
	var sends []settings.Version
	for _, word := range w.on {
		values = append(values, word.value)
		sends = append(sends, word.sends)
	}
	d.On, d.Sends = codes(values), versions(sends)
	if w.kept && d.Off == "" {
		d.Off = "nothing"
	}
	d.Kept = w.kept
	return d
}

// boolean is a value that Go's strconv.ParseBool reads, as many controllers do.
type boolean struct {
	sends settings.Version
	other Unrecognized
}

func (b boolean) read(s said) parsedValue {
	yes, err := strconv.ParseBool(s.value)
	switch {
	case err != nil:
		return b.other.verdict(s.value, `"true" or "false"`)
	case yes:
		return parsedValue{state: proxyOn, version: b.sends}
	}
	return parsedValue{state: proxyOff}
}

func (b boolean) describe() Description {
	return Description{
		On: codes([]string{"true", "1"}), Off: codes([]string{"false", "0"}),
		Otherwise: b.other.String(), Sends: versions([]settings.Version{b.sends}),
	}
}

// portList is a list of ports of the Service, separated by commas, or a word for
// all or none of them.
type portList struct {
	all, none []string
	sends     settings.Version
	// closed says that a port that is not in the list is off, whatever else the
	// Service says of it.
	closed bool
	// nodes says that the list has the nodePorts of the Service's ports.
	nodes bool
	other Unrecognized
}

func (l portList) read(s said) parsedValue {
	switch {
	case slices.Contains(l.all, s.value):
		return parsedValue{state: proxyOn, version: l.sends}
	case slices.Contains(l.none, s.value):
		return parsedValue{} // as without it: another annotation may say more
	}
	ports, ok := portsIn(s.value)
	port := s.port.Port
	if l.nodes {
		port = s.port.NodePort
	}
	switch {
	case !ok:
		return l.other.verdict(s.value, l.uses())
	case slices.Contains(ports, port):
		return parsedValue{state: proxyOn, version: l.sends}
	case l.closed:
		return parsedValue{state: proxyOff}
	}
	return parsedValue{}
}

func (l portList) uses() string {
	uses := []string{`ports of the Service, such as "80,443"`}
	if l.nodes {
		uses[0] = `nodePorts of the Service, such as "30080,30443"`
	}
	for _, w := range slices.Concat(l.all, l.none) {
		uses = append(uses, strconv.Quote(w))
	}
	return strings.Join(uses, ", or ")
}

func (l portList) describe() Description {
	ports := "ports of the Service: `80,443`"
	if l.nodes {
		ports = "nodePorts of the Service: `30080,30443`"
	}
	return Description{
		On:  strings.Join(slices.DeleteFunc([]string{codes(l.all), ports}, func(s string) bool { return s == "" }), ", "),
		Off: codes(l.none), Otherwise: l.other.String(), Sends: versions([]settings.Version{l.sends}), PerPort: true,
	}
}

// portsIn reads a list of ports, which may be empty; false: it is none.
func portsIn(list string) ([]int32, bool) {
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

// attribute is one of several attributes: "name=true,other=…".
type attribute struct {
	name  string
	sends settings.Version
	other Unrecognized
}

func (a attribute) read(s said) parsedValue {
	value, found := attributeIn(s.value, a.name)
	switch {
	case !found || value == "":
		return parsedValue{}
	case value == "true":
		return parsedValue{state: proxyOn, version: a.sends}
	case value == "false":
		return parsedValue{state: proxyOff}
	}
	return a.other.verdict(a.name+"="+value, fmt.Sprintf("%q or %q", a.name+"=true", a.name+"=false"))
}

func (a attribute) describe() Description {
	return Description{
		On: codes([]string{a.name + "=true"}), Off: codes([]string{a.name + "=false"}) + ", or without it",
		Otherwise: a.other.String(), Sends: versions([]settings.Version{a.sends}),
	}
}

// attributeIn gives the value of one attribute.
func attributeIn(list, name string) (string, bool) {
	for item := range strings.SplitSeq(list, ",") {
		if key, value, ok := strings.Cut(item, "="); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value), true
		}
	}
	return "", false
}

// feature is one of several words, separated by commas; small letters and
// capitals, and spaces, are the same.
type feature struct {
	name  string
	never string // the one that it cannot be together with
	sends settings.Version
}

func (f feature) read(s said) parsedValue {
	list := strings.Split(strings.ToLower(strings.ReplaceAll(s.value, " ", "")), ",")
	switch {
	case !slices.Contains(list, f.name):
		return parsedValue{}
	case slices.Contains(list, f.never):
		return refused.verdict(s.value, fmt.Sprintf("%q without %q", f.name, f.never))
	}
	return parsedValue{state: proxyOn, version: f.sends}
}

func (f feature) describe() Description {
	return Description{On: codes([]string{f.name}) + " in the list", Off: "without it", Otherwise: fmt.Sprintf("is ignored; `%s` beside it is refused", f.never), Sends: versions([]settings.Version{f.sends})}
}

func codes(values []string) string {
	var out []string
	for _, v := range values {
		if v == "" {
			v = `""`
		}
		out = append(out, "`"+v+"`")
	}
	return strings.Join(out, ", ")
}

// versions names the versions that are sent.
func versions(sends []settings.Version) string {
	var known []string
	for _, v := range sends {
		if v == "" {
			return "v1 or v2"
		}
		known = append(known, string(v))
	}
	slices.Sort(known)
	return strings.Join(slices.Compact(known), ", ")
}
