//go:build kubernetes

package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/rand"
)

// hashLabel is the label of pods that says which template they are made from.
const hashLabel = appsv1.DefaultDeploymentUniqueLabelKey

// owner is the object that pods are made for.
type owner struct {
	metav1.Object
	kind schema.GroupVersionKind
}

// templateHash is a short name for a pod template.
func templateHash(template corev1.PodTemplateSpec) string {
	text, err := json.Marshal(template)
	if err != nil {
		return "invalid" // never: it came as JSON
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:5])
}

// owned are the owner's pods that are not being deleted, oldest first.
func owned(o metav1.Object, pods []corev1.Pod) []corev1.Pod {
	var found []corev1.Pod
	for _, p := range pods {
		if p.DeletionTimestamp == nil && metav1.IsControlledBy(&p, o) {
			found = append(found, p)
		}
	}
	slices.SortFunc(found, func(a, b corev1.Pod) int {
		if order := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); order != 0 {
			return order
		}
		return strings.Compare(a.Name, b.Name)
	})
	return found
}

// createPod makes a pod from a template, and binds it to the node: there is only
// one, so there is no scheduler.
func (c *Cluster) createPod(ctx context.Context, o owner, name string, template corev1.PodTemplateSpec) error {
	pod := &corev1.Pod{ObjectMeta: *template.ObjectMeta.DeepCopy(), Spec: *template.Spec.DeepCopy()}
	pod.Name, pod.Namespace = name, o.GetNamespace()
	pod.Labels = maps.Clone(pod.Labels)
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[hashLabel] = templateHash(template)
	pod.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(o, o.kind)}
	pod.Spec.NodeName = nodeName
	if _, err := c.API.CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create the pod %s: %w", name, err)
	}
	c.logf("pod %s/%s is created", pod.Namespace, name)
	return nil
}

func (c *Cluster) deletePod(ctx context.Context, p corev1.Pod) error {
	c.logf("pod %s/%s is deleted", p.Namespace, p.Name)
	return c.API.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{})
}

// reconcileDeployments brings each Deployment's pods to the template and number
// that it asks for, as its strategy says.
func (c *Cluster) reconcileDeployments(ctx context.Context) error {
	deployments, err := c.API.AppsV1().Deployments("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	pods, err := c.API.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	there := map[types.UID]bool{}
	for _, d := range deployments.Items {
		there[d.UID] = true
		r := newRollout(&d, owned(&d, pods.Items))
		for range r.toCreate() {
			name := fmt.Sprintf("%s-%s-%s", d.Name, r.hash, rand.String(5))
			if err := c.createPod(ctx, owner{&d, appsv1.SchemeGroupVersion.WithKind("Deployment")}, name, d.Spec.Template); err != nil {
				return err
			}
		}
		for _, p := range r.toDelete() {
			if err := c.deletePod(ctx, p); err != nil {
				return err
			}
		}
		if err := c.writeDeploymentStatus(ctx, &d, r); err != nil {
			return err
		}
	}
	return c.deleteOrphans(ctx, "Deployment", there, pods.Items)
}

// rollout is where a Deployment is between its last template and this one.
type rollout struct {
	hash                     string
	replicas                 int // wanted
	current, old             []corev1.Pod
	maxSurge, maxUnavailable int
}

func newRollout(d *appsv1.Deployment, pods []corev1.Pod) rollout {
	r := rollout{hash: templateHash(d.Spec.Template), replicas: int(*d.Spec.Replicas)}
	for _, p := range pods {
		if p.Labels[hashLabel] == r.hash {
			r.current = append(r.current, p)
		} else {
			r.old = append(r.old, p)
		}
	}
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		r.maxUnavailable = r.replicas
		return r
	}
	// The API server has filled in 25 %. Surge is rounded up, unavailable down.
	r.maxSurge, _ = intstr.GetScaledValueFromIntOrPercent(d.Spec.Strategy.RollingUpdate.MaxSurge, r.replicas, true)
	r.maxUnavailable, _ = intstr.GetScaledValueFromIntOrPercent(d.Spec.Strategy.RollingUpdate.MaxUnavailable, r.replicas, false)
	return r
}

// toCreate is how many pods of the template to make: no more than the surge
// allows beside old ones.
func (r rollout) toCreate() int {
	missing := r.replicas - len(r.current)
	room := r.replicas + r.maxSurge - len(r.current) - len(r.old)
	return max(0, min(missing, room))
}

// toDelete are the pods that are not needed: those too many, and old ones as long
// as enough others are ready.
func (r rollout) toDelete() []corev1.Pod {
	if len(r.current) > r.replicas {
		return r.current[r.replicas:]
	}
	spare := countReady(r.current) + countReady(r.old) - (r.replicas - r.maxUnavailable)
	var gone []corev1.Pod
	for _, p := range r.old {
		if !ready(&p) {
			gone = append(gone, p)
		} else if spare > 0 {
			gone = append(gone, p)
			spare--
		}
	}
	return gone
}

func countReady(pods []corev1.Pod) int {
	n := 0
	for _, p := range pods {
		if ready(&p) {
			n++
		}
	}
	return n
}

func (c *Cluster) writeDeploymentStatus(ctx context.Context, d *appsv1.Deployment, r rollout) error {
	available := int32(countReady(r.current) + countReady(r.old))
	status := appsv1.DeploymentStatus{
		ObservedGeneration: d.Generation, Replicas: int32(len(r.current) + len(r.old)), UpdatedReplicas: int32(len(r.current)),
		ReadyReplicas: available, AvailableReplicas: available,
	}
	if available < int32(r.replicas) {
		status.UnavailableReplicas = int32(r.replicas) - available
	}
	was := d.Status.DeepCopy()
	was.Conditions, was.CollisionCount, was.TerminatingReplicas = nil, nil, nil
	if fmt.Sprint(*was) == fmt.Sprint(status) {
		return nil
	}
	d.Status = status
	_, err := c.API.AppsV1().Deployments(d.Namespace).UpdateStatus(ctx, d, metav1.UpdateOptions{})
	return err
}

// deleteOrphans deletes the pods of a kind of owner whose owner is gone, as the
// garbage collector does.
func (c *Cluster) deleteOrphans(ctx context.Context, kind string, owners map[types.UID]bool, pods []corev1.Pod) error {
	for _, p := range pods {
		ref := metav1.GetControllerOf(&p)
		if ref == nil || ref.Kind != kind || owners[ref.UID] || p.DeletionTimestamp != nil {
			continue
		}
		if err := c.deletePod(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// reconcileStatefulSets keeps the pods name-0 to name-n of each StatefulSet. A
// pod of another template is replaced, and its claims stay.
func (c *Cluster) reconcileStatefulSets(ctx context.Context) error {
	sets, err := c.API.AppsV1().StatefulSets("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	pods, err := c.API.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	known := map[types.UID]bool{}
	for _, set := range sets.Items {
		known[set.UID] = true
		there := map[string]corev1.Pod{}
		for _, p := range pods.Items {
			if metav1.IsControlledBy(&p, &set) {
				there[p.Name] = p
			}
		}
		template := set.Spec.Template.DeepCopy()
		for i := range *set.Spec.Replicas {
			name := fmt.Sprintf("%s-%d", set.Name, i)
			p, exists := there[name]
			switch {
			case !exists:
				err = c.createPod(ctx, owner{&set, appsv1.SchemeGroupVersion.WithKind("StatefulSet")}, name, withClaims(*template, set, name))
			case p.DeletionTimestamp == nil && p.Labels[hashLabel] != templateHash(withClaims(*template, set, name)):
				err = c.deletePod(ctx, p)
			}
			if err != nil {
				return err
			}
		}
	}
	return c.deleteOrphans(ctx, "StatefulSet", known, pods.Items)
}

// withClaims is the template with a volume for each claim template.
func withClaims(template corev1.PodTemplateSpec, set appsv1.StatefulSet, pod string) corev1.PodTemplateSpec {
	template = *template.DeepCopy()
	for _, claim := range set.Spec.VolumeClaimTemplates {
		template.Spec.Volumes = append(template.Spec.Volumes, corev1.Volume{
			Name: claim.Name,
			VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{
				ClaimName: claim.Name + "-" + pod,
			}},
		})
	}
	template.Spec.Hostname, template.Spec.Subdomain = pod, set.Spec.ServiceName
	return template
}

// jobAttempts is how many pods a Job gets until one succeeds.
const jobAttempts = 3

// reconcileJobs gives each Job a pod, and another one when that has failed.
func (c *Cluster) reconcileJobs(ctx context.Context) error {
	jobs, err := c.API.BatchV1().Jobs("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	pods, err := c.API.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	there := map[types.UID]bool{}
	for _, job := range jobs.Items {
		there[job.UID] = true
		if job.Status.CompletionTime != nil || job.DeletionTimestamp != nil {
			continue
		}
		if err := c.reconcileJob(ctx, &job, owned(&job, pods.Items)); err != nil {
			return err
		}
	}
	return c.deleteOrphans(ctx, "Job", there, pods.Items)
}

func (c *Cluster) reconcileJob(ctx context.Context, job *batchv1.Job, pods []corev1.Pod) error {
	failed := 0
	for _, p := range pods {
		switch p.Status.Phase {
		case corev1.PodSucceeded:
			return c.completeJob(ctx, job)
		case corev1.PodFailed:
			failed++
		default:
			return nil // it runs
		}
	}
	if failed >= jobAttempts {
		return nil
	}
	name := fmt.Sprintf("%s-%s", job.Name, rand.String(5))
	return c.createPod(ctx, owner{job, batchv1.SchemeGroupVersion.WithKind("Job")}, name, job.Spec.Template)
}

func (c *Cluster) completeJob(ctx context.Context, job *batchv1.Job) error {
	now := metav1.Now()
	job.Status = batchv1.JobStatus{
		StartTime: &job.CreationTimestamp, CompletionTime: &now, Succeeded: 1,
		Conditions: []batchv1.JobCondition{
			{Type: batchv1.JobSuccessCriteriaMet, Status: corev1.ConditionTrue, LastTransitionTime: now},
			{Type: batchv1.JobComplete, Status: corev1.ConditionTrue, LastTransitionTime: now},
		},
	}
	if _, err := c.API.BatchV1().Jobs(job.Namespace).UpdateStatus(ctx, job, metav1.UpdateOptions{}); err != nil {
		return err
	}
	c.logf("the Job %s/%s is complete", job.Namespace, job.Name)
	return nil
}
