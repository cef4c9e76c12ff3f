// Package crdvalidation puts the generated CRDs through the API server's own validation: structural
// schema, defaults and the cost limits of the CEL rules. It starts no server.
package crdvalidation

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"sigs.k8s.io/yaml"
)

// Installed CRDs live in etcd and in the annotation of kubectl apply.
const maxBytes = 256 << 10

func load(t *testing.T, path string) *apiextensions.CustomResourceDefinition {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(text) >= maxBytes {
		t.Errorf("%s has %d bytes, the limit is %d", path, len(text), maxBytes)
	}
	var v1 apiextensionsv1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(text, &v1); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	apiextensionsv1.SetDefaults_CustomResourceDefinition(&v1)
	apiextensionsv1.SetDefaults_CustomResourceDefinitionSpec(&v1.Spec)
	var crd apiextensions.CustomResourceDefinition
	if err := apiextensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(&v1, &crd, nil); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	// What the server fills in when the object is created.
	crd.Status.StoredVersions = []string{crd.Spec.Versions[0].Name}
	return &crd
}

func generated(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob("../../crds/generated/*.yaml")
	if err != nil || len(paths) != 2 {
		t.Fatalf("expected two generated CRDs, found %v (%v)", paths, err)
	}
	return paths
}

func TestGeneratedCRDsPassTheServersValidation(t *testing.T) {
	for _, path := range generated(t) {
		crd := load(t, path)
		for _, e := range validation.ValidateCustomResourceDefinition(context.Background(), crd) {
			t.Errorf("%s: %v", filepath.Base(path), e)
		}
	}
}

// The test above must be able to fail: the same CRDs with a list that lost its bound are refused
// for the cost of their rules.
func TestALostBoundIsRefused(t *testing.T) {
	for _, path := range generated(t) {
		crd := load(t, path)
		schema := crd.Spec.Validation
		if schema == nil {
			schema = crd.Spec.Versions[0].Schema
		}
		spec := schema.OpenAPIV3Schema.Properties["spec"]
		pod := spec.Properties["podTemplate"].Properties["spec"]
		containers := pod.Properties["containers"]
		containers.MaxItems = nil
		env := containers.Items.Schema.Properties["env"]
		env.MaxItems = nil
		containers.Items.Schema.Properties["env"] = env
		pod.Properties["containers"] = containers
		var found bool
		for _, e := range validation.ValidateCustomResourceDefinition(context.Background(), crd) {
			found = found || strings.Contains(e.Error(), "cost")
		}
		if !found {
			t.Errorf("%s: unbounded lists passed", filepath.Base(path))
		}
	}
}
