//go:build kubernetes

package cluster

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// volume is a volume of a pod on this machine.
type volume struct {
	spec      corev1.Volume
	directory string
}

// mountVolumes makes the pod's volumes. The error says what is missing, such as
// a Secret that is not there yet: the pod waits for it.
func (p *Pod) mountVolumes() error {
	p.volumes = map[string]volume{}
	for _, spec := range p.object.Spec.Volumes {
		v := volume{spec: spec, directory: filepath.Join(p.dir, "volumes", spec.Name)}
		if spec.PersistentVolumeClaim != nil { // it outlives the pod
			v.directory = filepath.Join(p.cluster.dir, "claims", p.namespace(), spec.PersistentVolumeClaim.ClaimName)
		}
		if err := os.MkdirAll(v.directory, 0o777); err != nil {
			return err
		}
		p.volumes[spec.Name] = v
	}
	return p.updateVolumes()
}

// updateVolumes writes what Secrets, ConfigMaps and tokens have now into the
// volumes that show them.
func (p *Pod) updateVolumes() error {
	for name, v := range p.volumes {
		files, err := p.files(v.spec)
		if err != nil {
			return fmt.Errorf("FailedMount: volume %s: %w", name, err)
		}
		if files == nil {
			continue
		}
		if err := writeAtomically(v.directory, files); err != nil {
			return err
		}
	}
	return nil
}

// files are the files that a volume shows, by their path in it; nil for a volume
// that is the pod's own.
func (p *Pod) files(spec corev1.Volume) (map[string][]byte, error) {
	switch {
	case spec.Secret != nil:
		return p.secretFiles(spec.Secret.SecretName, spec.Secret.Items, spec.Secret.Optional)
	case spec.ConfigMap != nil:
		return p.configMapFiles(spec.ConfigMap.Name, spec.ConfigMap.Items, spec.ConfigMap.Optional)
	case spec.DownwardAPI != nil:
		return p.downwardFiles(spec.DownwardAPI.Items)
	case spec.Projected != nil:
		return p.projectedFiles(spec.Projected.Sources)
	case spec.EmptyDir != nil, spec.PersistentVolumeClaim != nil:
		return nil, nil
	}
	return nil, fmt.Errorf("this kubelet does not know the type of the volume %s", spec.Name)
}

func (p *Pod) projectedFiles(sources []corev1.VolumeProjection) (map[string][]byte, error) {
	all := map[string][]byte{}
	for _, source := range sources {
		var files map[string][]byte
		var err error
		switch {
		case source.ServiceAccountToken != nil:
			files, err = p.tokenFiles(*source.ServiceAccountToken)
		case source.Secret != nil:
			files, err = p.secretFiles(source.Secret.Name, source.Secret.Items, source.Secret.Optional)
		case source.ConfigMap != nil:
			files, err = p.configMapFiles(source.ConfigMap.Name, source.ConfigMap.Items, source.ConfigMap.Optional)
		case source.DownwardAPI != nil:
			files, err = p.downwardFiles(source.DownwardAPI.Items)
		default:
			err = fmt.Errorf("this kubelet does not know the projection %v", source)
		}
		if err != nil {
			return nil, err
		}
		maps.Copy(all, files)
	}
	return all, nil
}

func (p *Pod) secretFiles(name string, items []corev1.KeyToPath, optional *bool) (map[string][]byte, error) {
	secret, err := p.cluster.API.CoreV1().Secrets(p.namespace()).Get(p.ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) && optional != nil && *optional {
		return map[string][]byte{}, nil
	}
	if err != nil {
		return nil, err
	}
	return selected(secret.Data, items)
}

func (p *Pod) configMapFiles(name string, items []corev1.KeyToPath, optional *bool) (map[string][]byte, error) {
	config, err := p.cluster.API.CoreV1().ConfigMaps(p.namespace()).Get(p.ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) && optional != nil && *optional {
		return map[string][]byte{}, nil
	}
	if err != nil {
		return nil, err
	}
	data := map[string][]byte{}
	for key, text := range config.Data {
		data[key] = []byte(text)
	}
	maps.Copy(data, config.BinaryData)
	return selected(data, items)
}

func (p *Pod) downwardFiles(items []corev1.DownwardAPIVolumeFile) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, item := range items {
		if item.FieldRef == nil {
			return nil, fmt.Errorf("this kubelet cannot read %v", item)
		}
		value, err := p.field(item.FieldRef.FieldPath)
		if err != nil {
			return nil, err
		}
		files[item.Path] = []byte(value)
	}
	return files, nil
}

// selected are the keys that a volume lists, or all.
func selected(data map[string][]byte, items []corev1.KeyToPath) (map[string][]byte, error) {
	if len(items) == 0 {
		if data == nil {
			data = map[string][]byte{}
		}
		return data, nil
	}
	files := map[string][]byte{}
	for _, item := range items {
		content, known := data[item.Key]
		if !known {
			return nil, fmt.Errorf("the key %s does not exist", item.Key)
		}
		files[item.Path] = content
	}
	return files, nil
}

// tokenFiles requests a token for the pod's service account that is valid as
// long as the pod is there. A volume that is written again keeps its token, until
// RotateTokens.
func (p *Pod) tokenFiles(source corev1.ServiceAccountTokenProjection) (map[string][]byte, error) {
	key := source.Audience + "\n" + source.Path
	if token, known := p.tokens[key]; known {
		return map[string][]byte{source.Path: token}, nil
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: source.ExpirationSeconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.name(), UID: p.object.UID},
	}}
	if source.Audience != "" {
		request.Spec.Audiences = []string{source.Audience}
	}
	answer, err := p.cluster.API.CoreV1().ServiceAccounts(p.namespace()).
		CreateToken(p.ctx, p.object.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	p.tokens[key] = []byte(answer.Status.Token)
	return map[string][]byte{source.Path: p.tokens[key]}, nil
}

// writeAtomically replaces the content of a volume as the kubelet does: a new
// directory, a symbolic link ..data that is renamed over the old one, and a link
// through it for each file. A reader sees all old files or all new ones.
func writeAtomically(directory string, files map[string][]byte) error {
	if same(directory, files) {
		return nil
	}
	old, _ := os.Readlink(filepath.Join(directory, "..data")) // "" at first
	current := time.Now().Format("..2006_01_02_15_04_05.000000000")
	for path, content := range files {
		file := filepath.Join(directory, current, path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, content, 0o644); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(directory, current), 0o755); err != nil {
		return err
	}
	if err := os.Symlink(current, filepath.Join(directory, "..data_tmp")); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(directory, "..data_tmp"), filepath.Join(directory, "..data")); err != nil {
		return err
	}
	for path := range files {
		first, _, _ := strings.Cut(path, "/")
		err := os.Symlink(filepath.Join("..data", first), filepath.Join(directory, first))
		if err != nil && !os.IsExist(err) {
			return err
		}
	}
	if old == "" {
		return nil
	}
	return os.RemoveAll(filepath.Join(directory, old))
}

func same(directory string, files map[string][]byte) bool {
	for path, content := range files {
		has, err := os.ReadFile(filepath.Join(directory, path))
		if err != nil || !bytes.Equal(has, content) {
			return false
		}
	}
	return true
}
