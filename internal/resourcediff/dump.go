package resourcediff

import (
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
)

// ReadDump returns the resources that an Envoy has got over xDS and uses, from what its admin interface answers at
// /config_dump. Envoy leaves out keys there.
// https://www.envoyproxy.io/docs/envoy/latest/api-v3/admin/v3/config_dump.proto
func ReadDump(text []byte) (Resources, error) {
	type state struct {
		Listener json.RawMessage `json:"listener"`
	}
	var dump struct {
		Configs []struct {
			Listeners []struct {
				Name   string `json:"name"`
				Active *state `json:"active_state"`
			} `json:"dynamic_listeners"`
			Clusters []struct {
				Cluster json.RawMessage `json:"cluster"`
			} `json:"dynamic_active_clusters"`
			Routes []struct {
				Config json.RawMessage `json:"route_config"`
			} `json:"dynamic_route_configs"`
			Secrets []struct {
				Secret json.RawMessage `json:"secret"`
			} `json:"dynamic_active_secrets"`
		} `json:"configs"`
	}
	if err := json.Unmarshal(text, &dump); err != nil {
		return nil, fmt.Errorf("this is no answer of Envoy's /config_dump: %w", err)
	}
	out := Resources{}
	var messages []json.RawMessage
	for _, c := range dump.Configs {
		for _, l := range c.Listeners {
			if l.Active != nil {
				messages = append(messages, l.Active.Listener)
			}
		}
		for _, cluster := range c.Clusters {
			messages = append(messages, cluster.Cluster)
		}
		for _, route := range c.Routes {
			messages = append(messages, route.Config)
		}
		for _, secret := range c.Secrets {
			messages = append(messages, secret.Secret)
		}
	}
	for _, message := range messages {
		if err := out.addJSON(message); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// addJSON adds a resource as Envoy prints it. Fields that are newer than this program are left out.
func (r Resources) addJSON(text []byte) error {
	var named struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal(text, &named); err != nil {
		return fmt.Errorf("a resource of Envoy's /config_dump: %w", err)
	}
	var packed anypb.Any
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, &packed); err != nil {
		return fmt.Errorf("%s in Envoy's /config_dump: %w", named.Name, err)
	}
	return r.Add(named.Name, &packed)
}
