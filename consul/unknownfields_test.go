package consul

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/internal/gateway"
)

// TestAllFieldsOfConsulsAPIAreKnown has answers with every field that Consul's API library knows. Those of a newer library
// have to be decided on.
func TestAllFieldsOfConsulsAPIAreKnown(t *testing.T) {
	wantEqual(t, nil, unknownFields[gateway.Entry](filled[api.IngressGatewayConfigEntry](t), envelope))
	wantEqual(t, nil, unknownFields[gateway.Mesh](filled[api.MeshConfigEntry](t), meshOthers))
	wantEqual(t, nil, unknownFields[proxyDefaultsEntry](filled[api.ProxyConfigEntry](t), proxyDefaultsOthers))
	wantEqual(t, nil, unknownFields[struct{ Chain gateway.Chain }](filled[api.DiscoveryChainResponse](t), chainOthers))
}

// filled returns a value with every field set, as Consul writes it.
func filled[T any](t *testing.T) []byte {
	t.Helper()
	var value T
	fill(reflect.ValueOf(&value).Elem())
	body, err := json.Marshal(&value)
	if err != nil {
		t.Fatal(err)
	}
	return body
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
		value := reflect.New(v.Type().Elem()).Elem()
		fill(value)
		v.SetMapIndex(reflect.ValueOf("x-key"), value)
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
	case reflect.Float32:
		v.SetFloat(1)
	case reflect.Interface:
		v.Set(reflect.ValueOf("value"))
	default:
		v.SetInt(1)
	}
}
