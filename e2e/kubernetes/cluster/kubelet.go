//go:build kubernetes

package cluster

import (
	"context"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// kubelet runs the pods that are bound to the node: it starts those that it does
// not know, and ends those that are deleted.
type kubelet struct {
	cluster *Cluster

	mu   sync.Mutex
	pods map[types.UID]*Pod
}

// reconcile compares the pods of the API server with those that run.
func (k *kubelet) reconcile(ctx context.Context) error {
	bound, err := k.cluster.API.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + nodeName})
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	there := map[types.UID]bool{}
	for _, object := range bound.Items {
		there[object.UID] = true
		p := k.pods[object.UID]
		if p == nil {
			p = newPod(ctx, k.cluster, &object)
			k.pods[object.UID] = p
			k.cluster.work.Go(p.run)
		}
		if object.DeletionTimestamp != nil {
			p.delete(time.Duration(*object.DeletionGracePeriodSeconds) * time.Second)
		}
	}
	for uid, p := range k.pods {
		if !there[uid] {
			p.delete(0)
			delete(k.pods, uid)
		}
	}
	return nil
}

// volumesChanged tells all pods that a Secret or a ConfigMap has changed.
func (k *kubelet) volumesChanged() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.pods {
		select {
		case p.changed <- struct{}{}:
		default: // it will look anyway
		}
	}
}

// find returns the pods with the labels that are not deleted.
func (k *kubelet) find(namespace string, selector labels.Selector) []*Pod {
	k.mu.Lock()
	defer k.mu.Unlock()
	var found []*Pod
	for _, p := range k.pods {
		if p.namespace() == namespace && selector.Matches(labels.Set(p.object.Labels)) && !p.over() {
			found = append(found, p)
		}
	}
	return found
}

// Pods returns the running pods of a namespace with the labels ("app=web").
func (c *Cluster) Pods(t *testing.T, namespace, selector string) []*Pod {
	t.Helper()
	parsed, err := labels.Parse(selector)
	if err != nil {
		t.Fatal(err)
	}
	return c.kubelet.find(namespace, parsed)
}

// RotateTokens gives the pod new service account tokens, as the kubelet does when
// 80 % of their life is over.
func (p *Pod) RotateTokens() { p.rotate <- struct{}{} }

// ready reports whether the API server has the pod as ready.
func ready(object *corev1.Pod) bool {
	for _, condition := range object.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}
