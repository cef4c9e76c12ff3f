// Package charts tests the Helm charts: what they refuse, what they render, and that a real API
// server takes it. test.sh builds what it needs and names it in the environment.
package charts

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"
)

const (
	operatorChart = "../../charts/longstrap"
	crdsChart     = "../../charts/longstrap-crds"
	kubeVersion   = "1.33.0"
)

// fromEnv is a file or folder that test.sh names.
func fromEnv(t *testing.T, name string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" {
		t.Fatalf("%s is not set: run hack/charts/test.sh", name)
	}
	return value
}

// helm runs Helm without anything of the user's own.
func helm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	command := exec.Command(fromEnv(t, "LONGSTRAP_HELM"), args...)
	home := t.TempDir()
	command.Env = []string{"HOME=" + home, "HELM_CACHE_HOME=" + home, "HELM_CONFIG_HOME=" + home, "HELM_DATA_HOME=" + home}
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("helm %s: %w\n%s%s", strings.Join(args, " "), err, stderr.String(), stdout.String())
	}
	return stdout.String(), nil
}

// valuesFiles are those of testdata, by name without ending.
func valuesFiles(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no values files: %v", err)
	}
	files := map[string]string{}
	for _, path := range paths {
		files[strings.TrimSuffix(filepath.Base(path), ".yaml")] = path
	}
	return files
}

type object map[string]any

// at reads a path such as spec.template.spec.containers.0.image; a dot in a key is written "\.".
func (o object) at(path string) any {
	var value any = map[string]any(o)
	for _, part := range strings.Split(strings.ReplaceAll(path, `\.`, "\x00"), ".") {
		part = strings.ReplaceAll(part, "\x00", ".")
		switch node := value.(type) {
		case map[string]any:
			value = node[part]
		case []any:
			index, err := strconv.Atoi(part)
			if err != nil || index >= len(node) {
				return nil
			}
			value = node[index]
		default:
			return nil
		}
	}
	return value
}

func (o object) kind() string      { return fmt.Sprint(o["kind"]) }
func (o object) name() string      { return fmt.Sprint(o.at("metadata.name")) }
func (o object) namespace() string { n, _ := o.at("metadata.namespace").(string); return n }

func (o object) as(t *testing.T, typed any) {
	t.Helper()
	text, err := json.Marshal(o)
	if err == nil {
		err = sigsyaml.UnmarshalStrict(text, typed)
	}
	if err != nil {
		t.Fatalf("%s %s: %v", o.kind(), o.name(), err)
	}
}

type objects []object

func parse(t *testing.T, text string) objects {
	t.Helper()
	var all objects
	for document := range strings.SplitSeq("\n"+text, "\n---\n") {
		var one object
		if err := yaml.Unmarshal([]byte(document), &one); err != nil {
			t.Fatalf("not YAML: %v\n%s", err, document)
		}
		if one != nil {
			all = append(all, one)
		}
	}
	return all
}

// render is the chart of the operator as release "r" in the namespace "system".
func render(t *testing.T, args ...string) (objects, error) {
	t.Helper()
	args = append([]string{"template", "r", operatorChart, "--namespace", "system", "--kube-version", kubeVersion}, args...)
	text, err := helm(t, args...)
	if err != nil {
		return nil, err
	}
	return parse(t, text), nil
}

func mustRender(t *testing.T, args ...string) objects {
	t.Helper()
	all, err := render(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// of is the only object of a kind: "Kind", or "Kind namespace".
func (all objects) of(t *testing.T, what string) object {
	t.Helper()
	kind, namespace, given := strings.Cut(what, " ")
	found := slices.DeleteFunc(all.named(kind), func(o object) bool { return given && o.namespace() != namespace })
	if len(found) != 1 {
		t.Fatalf("expected one %s, found %d", what, len(found))
	}
	return found[0]
}

func (all objects) named(kinds ...string) objects {
	var found objects
	for _, o := range all {
		for _, kind := range kinds {
			if o.kind() == kind {
				found = append(found, o)
			}
		}
	}
	return found
}
