package loadbalancer

import (
	"cmp"
	"encoding/json"
	"fmt"
)

// member is a word in a JSON object.
type member struct {
	key   string
	words words
}

func (m member) read(s said) parsedValue {
	var object map[string]json.RawMessage
	if err := json.Unmarshal([]byte(s.value), &object); err != nil {
		return parsedValue{state: proxyUnknown, problem: fmt.Sprintf("%q is not a JSON object; use {%q: …}", clip(s.value), m.key)}
	}
	raw, has := object[m.key]
	if !has {
		return parsedValue{}
	}
	var value string
	if err := json.Unmarshal(raw, &value); err != nil {
		return m.words.other.verdict(string(raw), m.words.uses())
	}
	if value == "" {
		return parsedValue{} // as without it
	}
	s.value = value
	return m.words.read(s)
}

func (m member) describe() Description {
	d := m.words.describe()
	d.On, d.Off, d.PerPort = fmt.Sprintf("JSON with `%s`: %s", m.key, d.On), fmt.Sprintf("%s, or without it", d.Off), true
	return d
}

// backends is UpCloud's own JSON, in which a backend has the name of the
// Service's port.
type backends struct{ words words }

func (b backends) read(s said) parsedValue {
	var config struct {
		Backends []struct {
			Name       string
			Properties struct {
				Proxy *string `json:"outbound_proxy_protocol"`
			}
		}
	}
	if err := json.Unmarshal([]byte(s.value), &config); err != nil {
		return parsedValue{state: proxyUnknown, problem: "this is not the JSON of a load balancer; mend it"}
	}
	for _, backend := range config.Backends {
		if backend.Name == s.port.Name && backend.Properties.Proxy != nil {
			s.value = *backend.Properties.Proxy
			return b.words.read(s)
		}
	}
	return parsedValue{}
}

func (b backends) describe() Description {
	d := b.words.describe()
	d.On, d.Off, d.PerPort = "JSON with `backends[].properties.outbound_proxy_protocol`: "+d.On, cmp.Or(d.Off, "``")+", or without it", true
	return d
}
