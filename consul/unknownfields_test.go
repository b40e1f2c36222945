package consul

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/internal/gateway"
)

// fieldsOfConsul2 are those that Consul 1.22 does not take.
var fieldsOfConsul2 = []string{
	"Defaults.PassiveHealthCheck.Consecutive5xx", "Defaults.PassiveHealthCheck.ConsecutiveGatewayFailure",
	"Defaults.PassiveHealthCheck.EnforcingConsecutiveGatewayFailure",
	"Listeners.Services.PassiveHealthCheck.Consecutive5xx", "Listeners.Services.PassiveHealthCheck.ConsecutiveGatewayFailure",
	"Listeners.Services.PassiveHealthCheck.EnforcingConsecutiveGatewayFailure",
}

// TestAllFieldsOfConsulsAPIAreKnown has an entry with every field that Consul's API library knows. Those of a newer
// library have to be decided on.
func TestAllFieldsOfConsulsAPIAreKnown(t *testing.T) {
	entry := api.IngressGatewayConfigEntry{}
	fill(reflect.ValueOf(&entry).Elem())
	body, err := json.Marshal([]any{&entry})
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, map[string][]string{"text": fieldsOfConsul2}, unknownFields[gateway.Entry](body))
}

// fill sets every field of a value.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("x-key"), reflect.ValueOf("value"))
	case reflect.Struct:
		for _, field := range v.Fields() {
			fill(field)
		}
	case reflect.String:
		v.SetString("text")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(1)
	default:
		v.SetInt(1)
	}
}
