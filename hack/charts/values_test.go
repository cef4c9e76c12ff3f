package charts

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"sort"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the table of values in docs/install.md again")

const installPage = "../../docs/install.md"

func TestLint(t *testing.T) {
	for name, path := range valuesFiles(t) {
		if _, err := helm(t, "lint", "--strict", "--kube-version", kubeVersion, "--values", path, operatorChart); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := helm(t, "lint", "--strict", "--kube-version", kubeVersion, crdsChart); err != nil {
		t.Error(err)
	}
}

func TestValuesThatAreRefused(t *testing.T) {
	for _, test := range []struct{ set, message string }{
		{"replica=3", "additional properties 'replica' not allowed"},
		{"image.name=x", "additional properties 'name' not allowed"},
		{"image.digest=sha256:abc", "image.digest"},
		{"image.digest=latest", "image.digest"},
		{"image.repository=", "image.repository"},
		{"image.repository=Acme", "image.repository"},
		{"image.registry=https://ghcr.io", "image.registry"},
		{"global.imageRegistry=a b", "global.imageRegistry"},
		{"image.tag=a:b", "image.tag"},
		{"image.pullPolicy=Sometimes", "image.pullPolicy"},
		{"workerImage.digest=sha512:0", "workerImage.digest"},
		{"imagePullSecrets[0]=x", "imagePullSecrets.0"},
		{"replicas=0", "replicas"},
		{"operator.workers=0", "operator.workers"},
		{"operator.workers=257", "operator.workers"},
		{"namespaces[0]=Team", "namespaces.0"},
		{"namespaces[0]=", "namespaces.0"},
		{"namespaces={a}", "clusterIdentity: required with namespaces"},
		{"clusterIdentity=a/b", "clusterIdentity"},
		{"serviceAccount.create=false", "serviceAccount.name: required when serviceAccount.create is false"},
		{"serviceAccount.annotations.a=1", "serviceAccount.annotations"},
		// The watches would take the operator's own pods for those of a run.
		{"nameOverride=longstrap", "nameOverride"},
		{`podLabels.app\.kubernetes\.io/name=x`, "podLabels"},
		{`commonLabels.app\.kubernetes\.io/instance=x`, "commonLabels"},
		{"networkPolicy.apiServerPorts[0]=0", "networkPolicy.apiServerPorts.0"},
		{"topologySpreadConstraints[0].topologyKey=a", "topologySpreadConstraints.0"},
		{"networkPolicy.runs=true", "networkPolicy.runs: needs namespaces"},
		{"serviceMonitor.interval=30", "serviceMonitor.interval"},
		{"prometheusRule.disabledAlerts={NoLeader}", "prometheusRule.disabledAlerts.0"},
		{"prometheusRule.withoutProgressMinutes=1", "prometheusRule.withoutProgressMinutes"},
	} {
		_, err := render(t, "--set", test.set)
		if err == nil {
			t.Errorf("%s is not refused", test.set)
			continue
		}
		if said := strings.ReplaceAll(err.Error(), "/", "."); !strings.Contains(said, strings.ReplaceAll(test.message, "/", ".")) {
			t.Errorf("%s: expected %q in\n%s", test.set, test.message, err)
		}
	}
	if _, err := helm(t, "template", "r", operatorChart, "--kube-version", "1.32.9"); err == nil || !strings.Contains(err.Error(), "kubeVersion") {
		t.Errorf("an old cluster is not refused: %v", err)
	}
	if _, err := helm(t, "template", "r", operatorChart, "--kube-version", "v1.33.1-eks-1234567"); err != nil {
		t.Errorf("a vendor's version is refused: %v", err)
	}
}

type schema struct {
	Description          string             `json:"description"`
	Type                 string             `json:"type"`
	Ref                  string             `json:"$ref"`
	Properties           map[string]*schema `json:"properties"`
	AdditionalProperties any                `json:"additionalProperties"`
}

// row is a leaf of values.yaml, or an object whose keys are the user's.
type row struct{ path, standard, description string }

// TestValuesAndSchema: every value has a default and a description, every object with known keys is closed.
func TestValuesAndSchema(t *testing.T) {
	rows := valueRows(t)
	if len(rows) < 40 {
		t.Errorf("only %d values were found", len(rows))
	}
	var table strings.Builder
	table.WriteString("| value | default | meaning |\n|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&table, "| `%s` | %s | %s |\n", r.path, r.standard, r.description)
	}
	page, err := os.ReadFile(installPage)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- values -->\n", "<!-- end of values -->"
	before, rest, found := strings.Cut(string(page), begin)
	old, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("%s has no place for the table of values", installPage)
	}
	if *update {
		if err := os.WriteFile(installPage, []byte(before+begin+table.String()+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if old != table.String() {
		t.Errorf("the table in %s is stale: hack/charts/test.sh -update", installPage)
	}
}

func valueRows(t *testing.T) []row {
	t.Helper()
	var root schema
	var values map[string]any
	text, err := os.ReadFile(operatorChart + "/values.schema.json")
	if err == nil {
		err = json.Unmarshal(text, &root)
	}
	if err != nil {
		t.Fatal(err)
	}
	if text, err = os.ReadFile(operatorChart + "/values.yaml"); err == nil {
		err = yaml.Unmarshal(text, &values)
	}
	if err != nil {
		t.Fatal(err)
	}
	var rows []row
	var walk func(path string, s *schema, value any)
	walk = func(path string, s *schema, value any) {
		if s.Description == "" {
			t.Errorf("%s has no description in values.schema.json", path)
		}
		known, isMap := value.(map[string]any)
		if s.Properties == nil || !isMap {
			standard, err := json.Marshal(value)
			if err != nil {
				t.Fatal(err)
			}
			rows = append(rows, row{path, "`" + string(standard) + "`", strings.ReplaceAll(s.Description, "|", "\\|")})
			return
		}
		if s.AdditionalProperties != false {
			t.Errorf("%s is not closed: a typing error would pass", path)
		}
		for key := range known {
			if s.Properties[key] == nil {
				t.Errorf("%s.%s is in values.yaml, but not in the schema", path, key)
			}
		}
		keys := make([]string, 0, len(s.Properties))
		for key := range s.Properties {
			keys = append(keys, key)
		}
		sort.Strings(keys)
		for _, key := range keys {
			below := strings.TrimPrefix(path+"."+key, ".")
			if below == "global" {
				// Helm's own; not in values.yaml, because it would hide that of a parent chart.
				rows = append(rows, row{"global.imageRegistry", "", s.Properties[key].Properties["imageRegistry"].Description})
				continue
			}
			standard, there := known[key]
			if !there {
				t.Errorf("%s has no default in values.yaml", below)
			}
			walk(below, s.Properties[key], standard)
		}
	}
	walk("", &root, values)
	slices.SortStableFunc(rows, func(a, b row) int { return strings.Compare(a.path, b.path) })
	return rows
}
