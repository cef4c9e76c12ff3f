// Package argocd compares every example with its live object as Argo CD does. What it calls a
// difference, users see as OutOfSync for ever.
package argocd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/argoproj/argo-cd/gitops-engine/v3/pkg/diff"
	"github.com/argoproj/argo-cd/gitops-engine/v3/pkg/utils/kube"
	"github.com/argoproj/argo-cd/gitops-engine/v3/pkg/utils/tracing"
	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
)

// The names that Argo CD and the operator write under.
const (
	argo     = "argocd-controller"
	operator = "longstrap-operator"
)

// read gives the objects of a YAML file.
func read(t *testing.T, path string) []*unstructured.Unstructured {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var objects []*unstructured.Unstructured
	decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		var object map[string]any
		if err := decoder.Decode(&object); errors.Is(err, io.EOF) {
			return objects
		} else if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		objects = append(objects, &unstructured.Unstructured{Object: object})
	}
}

// examples gives every object of the examples, in namespace default as Argo CD fills it in.
func examples(t *testing.T) []*unstructured.Unstructured {
	t.Helper()
	paths, err := filepath.Glob("../../../examples/*/*.yaml")
	if err != nil || len(paths) < 6 {
		t.Fatalf("expected at least six examples, found %v (%v)", paths, err)
	}
	var objects []*unstructured.Unstructured
	for _, path := range paths {
		for _, object := range read(t, path) {
			object.SetNamespace("default")
			objects = append(objects, object)
		}
	}
	return objects
}

func resource(object *unstructured.Unstructured) schema.GroupVersionResource {
	plural := map[string]string{"SynthesisJob": "synthesisjobs", "ContextExtensionRun": "contextextensionruns"}
	return schema.GroupVersionResource{Group: "longstrap.io", Version: "v1alpha1", Resource: plural[object.GetKind()]}
}

func TestExamplesHaveNoDifference(t *testing.T) {
	config := startControlPlane(t)
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	kubectl := &kube.KubectlCmd{Log: logr.Discard(), Tracer: tracing.NopTracer{}}
	_, parser, err := kubectl.LoadOpenAPISchema(config)
	if err != nil {
		t.Fatal(err)
	}
	applier, stop, err := kubectl.ManageServerSideDiffDryRuns(config)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	manage, stopManage, err := kubectl.ManageResources(config)
	if err != nil {
		t.Fatal(err)
	}
	defer stopManage()

	for _, serverSide := range []bool{false, true} {
		options := []diff.Option{diff.WithLogr(logr.Discard())}
		if serverSide {
			options = append(options, diff.WithServerSideDiff(true), diff.WithManager(argo), diff.WithGVKParser(parser),
				diff.WithServerSideDryRunner(diff.NewK8sServerSideDryRunner(applier)))
		}
		for _, wanted := range examples(t) {
			name := fmt.Sprintf("%s/%s/serverSide=%t", wanted.GetKind(), wanted.GetName(), serverSide)
			t.Run(name, func(t *testing.T) {
				objects := client.Resource(resource(wanted)).Namespace("default")
				if _, err := manage.ApplyResource(t.Context(), wanted.DeepCopy(), 0, false, true, serverSide, argo); err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := objects.Delete(t.Context(), wanted.GetName(), metav1.DeleteOptions{}); err != nil {
						t.Error(err)
					}
				}()
				// As the operator does: a status, and nothing else.
				status, _ := json.Marshal(map[string]any{"status": map[string]any{"phase": "Pending", "attempt": 0}})
				live, err := objects.Patch(t.Context(), wanted.GetName(), types.MergePatchType, status,
					metav1.PatchOptions{FieldManager: operator}, "status")
				if err != nil {
					t.Fatal(err)
				}
				same := compare(t, wanted, live, options)
				if same.Modified {
					t.Errorf("differs:\npredicted %s\nlive      %s", same.PredictedLive, same.NormalizedLive)
				}
				// The comparison must be able to fail: a limit that was edited.
				edited := wanted.DeepCopy()
				if err := unstructured.SetNestedField(edited.Object, int64(1), "spec", "backoffLimit"); err != nil {
					t.Fatal(err)
				}
				if !compare(t, edited, live, options).Modified {
					t.Error("an edit is not seen as a difference")
				}
			})
		}
	}
}

func compare(t *testing.T, wanted, live *unstructured.Unstructured, options []diff.Option) *diff.DiffResult {
	t.Helper()
	result, err := diff.Diff(t.Context(), wanted.DeepCopy(), live.DeepCopy(), options...)
	if err != nil {
		t.Fatal(err)
	}
	return result
}
