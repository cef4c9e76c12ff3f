package argocd

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"longstrap.io/hack/control-plane/testserver"
)

// startControlPlane runs etcd and kube-apiserver with the generated CRDs.
func startControlPlane(t *testing.T) *rest.Config {
	t.Helper()
	bin := os.Getenv("LONGSTRAP_CONTROL_PLANE")
	if bin == "" {
		t.Fatal("LONGSTRAP_CONTROL_PLANE is not set: run `make test-gitops`")
	}
	server := testserver.Start(t, bin, testserver.User{Name: "admin", Groups: "system:masters"})
	config := &rest.Config{
		Host:            server.URL,
		BearerToken:     "admin",
		TLSClientConfig: rest.TLSClientConfig{CAFile: server.CA},
	}
	installCRDs(t, config)
	return config
}

func installCRDs(t *testing.T, config *rest.Config) {
	t.Helper()
	paths, err := filepath.Glob("../../../crds/generated/*.yaml")
	if err != nil || len(paths) != 2 {
		t.Fatalf("expected two generated CRDs, found %v (%v)", paths, err)
	}
	crds := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		crd := read(t, path)[0]
		if _, err := client.Resource(crds).Create(t.Context(), crd, metav1.CreateOptions{}); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		err := wait.PollUntilContextTimeout(t.Context(), 100*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
			live, err := client.Resource(crds).Get(ctx, crd.GetName(), metav1.GetOptions{})
			return err == nil && established(live), err
		})
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
}

func established(crd *unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(crd.Object, "status", "conditions")
	for _, condition := range conditions {
		c := condition.(map[string]any)
		if c["type"] == "Established" && c["status"] == "True" {
			return true
		}
	}
	return false
}
