package admission

import (
	"fmt"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
)

// CAVolume is the volume of a changed pod with the CA of Usher's certificate. The Secret's key is ca.crt, and so is the
// file below CAPath.
const (
	CAVolume = "usher-ca"
	CAPath   = "/etc/usher-ca"
	caKey    = "ca.crt"
)

// Change is what a gateway's pod gets. The chart's MutatingAdmissionPolicy makes the same change.
type Change struct {
	Container string   // that runs consul-dataplane
	Args      []string // for the end of its arguments: the last flag of a name wins
	CASecret  string   // whose ca.crt is mounted at CAPath; "" for none
	// TerminationGracePeriodSeconds is the least that the pod has; 0 leaves it as it is.
	TerminationGracePeriodSeconds int64
}

// operation is an operation of a JSON Patch (RFC 6902).
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}

func add(path string, value any) operation { return operation{"add", path, value} }

// patch returns what the pod lacks of the change: nothing for a pod that has been changed. It returns an error for a pod
// that is not one of the Consul chart: unchanged, it would be a gateway without Usher.
func (c *Change) patch(pod *corev1.Pod) ([]operation, error) {
	i := slices.IndexFunc(pod.Spec.Containers, func(in corev1.Container) bool { return in.Name == c.Container })
	if i < 0 {
		return nil, fmt.Errorf("the pod has no container %q; the labels of ingress gateways are for pods of the Consul chart only", c.Container)
	}
	container, path := &pod.Spec.Containers[i], "/spec/containers/"+strconv.Itoa(i)
	if len(container.Args) == 0 || c.CASecret != "" && (len(container.VolumeMounts) == 0 || len(pod.Spec.Volumes) == 0) {
		return nil, fmt.Errorf("the container %q has no arguments or no volumes, which it has in the Consul chart; "+
			"the labels of ingress gateways are for pods of this chart only", c.Container)
	}
	var ops []operation
	if !endsWith(container.Args, c.Args) {
		for _, arg := range c.Args {
			ops = append(ops, add(path+"/args/-", arg))
		}
	}
	if c.CASecret != "" && !slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == CAVolume }) {
		ops = append(ops,
			add("/spec/volumes/-", corev1.Volume{Name: CAVolume, VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{
				SecretName: c.CASecret, Items: []corev1.KeyToPath{{Key: caKey, Path: caKey}},
			}}}),
			add(path+"/volumeMounts/-", corev1.VolumeMount{Name: CAVolume, MountPath: CAPath, ReadOnly: true}))
	}
	has := pod.Spec.TerminationGracePeriodSeconds // Kubernetes has filled it in
	if has != nil && *has < c.TerminationGracePeriodSeconds {
		ops = append(ops, add("/spec/terminationGracePeriodSeconds", c.TerminationGracePeriodSeconds))
	}
	return ops, nil
}

// endsWith reports whether the end of all is last.
func endsWith(all, last []string) bool {
	return len(all) >= len(last) && slices.Equal(all[len(all)-len(last):], last)
}
