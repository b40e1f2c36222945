//go:build kubernetes

package cluster

import (
	"fmt"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// variables are a container's environment in the order of its spec.
type variables struct {
	names  []string
	values map[string]string
}

func (v *variables) set(name, value string) {
	if _, known := v.values[name]; !known {
		v.names = append(v.names, name)
	}
	v.values[name] = value
}

func (v *variables) list() []string {
	var list []string
	for _, name := range v.names {
		list = append(list, name+"="+v.values[name])
	}
	return list
}

var reference = regexp.MustCompile(`\$\(([A-Za-z_][\w.-]*)\)`)

// expand replaces $(NAME) by the variable's value. What is not defined stays as
// it is.
func (v *variables) expand(text string) string {
	return reference.ReplaceAllStringFunc(text, func(found string) string {
		if value, defined := v.values[found[2:len(found)-1]]; defined {
			return value
		}
		return found
	})
}

func (v *variables) expandAll(texts []string) []string {
	expanded := make([]string, len(texts))
	for i, text := range texts {
		expanded[i] = v.expand(text)
	}
	return expanded
}

// environment is what a container's process gets: where the API server is, and
// what the spec lists.
func (p *Pod) environment(spec corev1.Container) (*variables, error) {
	env := &variables{values: map[string]string{}}
	env.set("HOSTNAME", p.name())
	env.set("HOME", "/tmp")
	env.set("KUBERNETES_SERVICE_HOST", apiServiceIP)
	env.set("KUBERNETES_SERVICE_PORT", "443")
	for _, variable := range spec.Env {
		value := env.expand(variable.Value)
		if variable.ValueFrom != nil {
			var err error
			if value, err = p.valueFrom(*variable.ValueFrom); err != nil {
				return nil, fmt.Errorf("variable %s: %w", variable.Name, err)
			}
		}
		env.set(variable.Name, value)
	}
	return env, nil
}

func (p *Pod) valueFrom(from corev1.EnvVarSource) (string, error) {
	switch {
	case from.FieldRef != nil:
		return p.field(from.FieldRef.FieldPath)
	case from.SecretKeyRef != nil:
		secret, err := p.cluster.API.CoreV1().Secrets(p.namespace()).Get(p.ctx, from.SecretKeyRef.Name, metav1.GetOptions{})
		return string(secret.Data[from.SecretKeyRef.Key]), err
	case from.ConfigMapKeyRef != nil:
		config, err := p.cluster.API.CoreV1().ConfigMaps(p.namespace()).Get(p.ctx, from.ConfigMapKeyRef.Name, metav1.GetOptions{})
		return config.Data[from.ConfigMapKeyRef.Key], err
	}
	return "", fmt.Errorf("this kubelet cannot read the source %v", from)
}

var keyed = regexp.MustCompile(`^metadata\.(annotations|labels)\['(.*)'\]$`)

// field is a field of the pod, as the downward API has it.
func (p *Pod) field(path string) (string, error) {
	fields := map[string]string{
		"metadata.name": p.name(), "metadata.namespace": p.namespace(), "metadata.uid": string(p.object.UID),
		"spec.nodeName": p.object.Spec.NodeName, "spec.serviceAccountName": p.object.Spec.ServiceAccountName,
		"status.podIP": p.ip(), "status.podIPs": p.ip(), "status.hostIP": nodeIP,
	}
	if value, known := fields[path]; known {
		return value, nil
	}
	if found := keyed.FindStringSubmatch(path); found != nil {
		from := p.object.Labels
		if found[1] == "annotations" {
			from = p.object.Annotations
		}
		return from[found[2]], nil
	}
	if strings.HasPrefix(path, "metadata.") {
		return "", fmt.Errorf("this kubelet does not know the field %s", path)
	}
	return "", fmt.Errorf("there is no field %s", path)
}
