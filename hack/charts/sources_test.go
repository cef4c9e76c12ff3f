package charts

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestWhatTheOperatorExpects: options, paths and ports of the chart stand in the operator's sources.
func TestWhatTheOperatorExpects(t *testing.T) {
	source := func(path string) string {
		text, err := os.ReadFile("../../" + path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	options, routes := source("operator/src/cluster/options.rs"), source("operator/src/cluster/http.rs")
	task, names := source("crds/src/task.rs"), source("crds/src/names.rs")
	// These files set all options between them.
	given := map[string]bool{}
	for _, file := range []string{"default", "namespaced"} {
		all := mustRender(t, "--values", valuesFiles(t)[file])
		deployment := all.of(t, "Deployment")
		args, _ := deployment.at(container + "args").([]any)
		for _, arg := range args {
			option, _, _ := strings.Cut(strings.TrimPrefix(fmt.Sprint(arg), "--"), "=")
			given[strings.ReplaceAll(option, "-", "_")] = true
		}
		for _, probe := range []string{"livenessProbe", "readinessProbe"} {
			if path := deployment.at(container + probe + ".httpGet.path"); !strings.Contains(routes, fmt.Sprintf(".route(%q", path)) {
				t.Errorf("%s: the operator does not serve %v", probe, path)
			}
		}
		policy := all.of(t, "NetworkPolicy system")
		if port := fmt.Sprint(policy.at("spec.egress.1.ports.0.port")); !strings.Contains(task, "progress: "+port) {
			t.Errorf("pods of runs do not tell their progress on port %s", port)
		}
		if name := policy.at(`spec.egress.1.to.0.podSelector.matchLabels.app\.kubernetes\.io/name`); !strings.Contains(names, fmt.Sprintf("APP: &str = %q", name)) {
			t.Errorf("pods of runs are not called %v", name)
		}
	}
	for _, option := range regexp.MustCompile(`(?m)^    pub ([a-z_]+):`).FindAllStringSubmatch(options, -1) {
		if !given[option[1]] {
			t.Errorf("the chart does not give the option %s", option[1])
		}
		delete(given, option[1])
	}
	for option := range given {
		t.Errorf("the operator has no option %s", option)
	}
}
