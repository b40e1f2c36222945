// Package kubeapi connects to the API server of Kubernetes, for the packages that read Services, tokens and Usher's own
// objects there.
package kubeapi

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/usherproxy/usher/internal/guard"
)

// ErrNotInCluster is the error of Connect without a kubeconfig outside Kubernetes.
var ErrNotInCluster = rest.ErrNotInCluster

// A panic in a goroutine of client-go must not end the process. It ends only that goroutine and its request, and
// client-go retries the request.
func init() {
	log := utilruntime.PanicHandlers
	utilruntime.ReallyCrash = false
	utilruntime.PanicHandlers = []func(context.Context, any){func(ctx context.Context, cause any) {
		guard.Panics.WithLabelValues("kubernetes").Inc()
		for _, handler := range log {
			handler(klog.NewContext(ctx, klog.Background()), cause) // the logger in ctx discards everything
		}
	}}
}

// Connect returns a client of the API server in the file kubeconfig, or, without a file, of the cluster that Usher
// runs in. It sends no request yet. The error is ErrNotInCluster if there is neither.
func Connect(kubeconfig string) (rest.Interface, error) {
	// Usher sends a few requests for each Service when its watch starts; for the rest the API server has its own
	// limits.
	return connect(kubeconfig, 50, 100)
}

// ConnectUnlimited is Connect for a client whose user limits its requests.
func ConnectUnlimited(kubeconfig string) (rest.Interface, error) { return connect(kubeconfig, -1, 0) }

func connect(kubeconfig string, qps float32, burst int) (rest.Interface, error) {
	config, err := restConfig(kubeconfig)
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	utilruntime.Must(corev1.AddToScheme(scheme)) // it registers constants
	config.QPS, config.Burst = qps, burst
	config.APIPath = "/api"
	config.GroupVersion = &corev1.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.UserAgent = "usher"
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	return client, nil
}

func restConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		return rest.InClusterConfig()
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	return config, nil
}
