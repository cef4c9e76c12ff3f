package charts

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

const (
	operatorPage = "../../docs/operator.md"
	reasonsPage  = "../../crds/generated/reasons.md"
)

// metrics are those of the operator's page: their labels by name.
func metrics(t *testing.T) map[string][]string {
	t.Helper()
	page, err := os.ReadFile(operatorPage)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	line := regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| (counter|gauge|histogram)[^|]*\\| ([^|]*)\\|")
	var before []string
	for _, match := range line.FindAllStringSubmatch(string(page), -1) {
		name, kind, words := match[1], match[2], strings.TrimSpace(match[3])
		labels := before
		if words != "same" {
			labels = nil
			// "kind, result: ok, error": what follows a colon are values of the label before it.
			words, _, _ = strings.Cut(words, ":")
			for label := range strings.SplitSeq(words, ",") {
				labels = append(labels, strings.TrimSpace(label))
			}
		}
		before = labels
		if kind == "histogram" {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				all[name+suffix] = append(slices.Clone(labels), "le")
			}
			continue
		}
		all[name] = labels
	}
	if len(all) < 20 {
		t.Fatalf("%s: only %d metrics were found", operatorPage, len(all))
	}
	return all
}

// check parses an expression; each metric and label in it must stand on the operator's page.
func check(expression string, known map[string][]string) (used []string, err error) {
	parsed, err := parser.NewParser(parser.Options{}).ParseExpr(expression)
	if err != nil {
		return nil, err
	}
	// What Prometheus adds to each scraped number; "namespace" is the operator's there.
	allowed := []string{"job", "pod", "namespace", labels.MetricName}
	var grouping []string
	parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
		switch node := node.(type) {
		case *parser.VectorSelector:
			used = append(used, node.Name)
			own, found := known[node.Name]
			if !found {
				err = fmt.Errorf("the metric %q does not stand in %s", node.Name, operatorPage)
			}
			allowed = append(allowed, own...)
			for _, matcher := range node.LabelMatchers {
				if found && !slices.Contains(append(own, allowed[:4]...), matcher.Name) {
					err = fmt.Errorf("%s has no label %q", node.Name, matcher.Name)
				}
			}
		case *parser.AggregateExpr:
			grouping = append(grouping, node.Grouping...)
		}
		return nil
	})
	for _, label := range grouping {
		if err == nil && !slices.Contains(allowed, label) {
			err = fmt.Errorf("no metric of the expression has the label %q", label)
		}
	}
	return used, err
}

// TestChecksOfExpressions: the checks above can fail.
func TestChecksOfExpressions(t *testing.T) {
	known := metrics(t)
	for expression, message := range map[string]string{
		"max(longstrap_leader":                                        "unclosed left parenthesis",
		"longstrap_leaders":                                           "does not stand in",
		`longstrap_objects{state="a"}`:                                `no label "state"`,
		"sum by (phase) (longstrap_leader)":                           `label "phase"`,
		"sum by (kind, phase) (longstrap_objects)":                    "",
		"histogram_quantile(0.9, longstrap_reconcile_seconds_bucket)": "",
	} {
		if _, err := check(expression, known); (err == nil) != (message == "") || err != nil && !strings.Contains(err.Error(), message) {
			t.Errorf("%s: %v", expression, err)
		}
	}
}

func TestAlerts(t *testing.T) {
	known := metrics(t)
	page, err := os.ReadFile(reasonsPage)
	if err != nil {
		t.Fatal(err)
	}
	var rule monitoringv1.PrometheusRule
	mustRender(t, "--set", "prometheusRule.enabled=true").of(t, "PrometheusRule").as(t, &rule)
	alerts := map[string]bool{}
	for _, alert := range rule.Spec.Groups[0].Rules {
		alerts[alert.Alert] = true
		if _, err := check(alert.Expr.String(), known); err != nil {
			t.Errorf("%s: %v", alert.Alert, err)
		}
		for _, label := range regexp.MustCompile(`\$labels\.([a-z_]+)`).FindAllStringSubmatch(alert.Annotations["summary"], -1) {
			if !regexp.MustCompile(`by \([^)]*\b` + label[1] + `\b`).MatchString(alert.Expr.String()) {
				t.Errorf("%s: the label %s of the summary is not in the result", alert.Alert, label[1])
			}
		}
		for _, annotation := range []string{"summary", "description", "runbook"} {
			if text := alert.Annotations[annotation]; text == "" || strings.Contains(text, "__") {
				t.Errorf("%s: %s is %q", alert.Alert, annotation, text)
			}
		}
		if severity := alert.Labels["severity"]; severity != "critical" && severity != "warning" {
			t.Errorf("%s: severity %q", alert.Alert, severity)
		}
		for _, match := range regexp.MustCompile(`reason=~"([^"]*)"`).FindAllStringSubmatch(alert.Expr.String(), -1) {
			for reason := range strings.SplitSeq(match[1], "|") {
				if !strings.Contains(string(page), "| `"+reason+"` |") {
					t.Errorf("%s: there is no reason %s", alert.Alert, reason)
				}
			}
		}
	}
	for _, name := range []string{"NoLeader", "WatchStale", "ReconcileErrors", "RunBlocked", "RunFailed", "RunWithoutProgress"} {
		if !alerts["Longstrap"+name] {
			t.Errorf("there is no alert Longstrap%s", name)
		}
	}
	mustRender(t, "--values", valuesFiles(t)["everything"]).of(t, "PrometheusRule").as(t, &rule)
	for _, alert := range rule.Spec.Groups[0].Rules {
		delete(alerts, alert.Alert)
		if alert.Alert == "LongstrapRunWithoutProgress" && !strings.Contains(alert.Expr.String(), "offset 2h") && !strings.Contains(alert.Expr.String(), "offset 120m") {
			t.Errorf("the minutes are not those of the values: %s", alert.Expr.String())
		}
	}
	if left := slices.Collect(maps.Keys(alerts)); !slices.Equal(left, []string{"LongstrapRunBlocked"}) {
		t.Errorf("disabledAlerts has left out %v", left)
	}
}

func TestMonitorsSelectWhatIsThere(t *testing.T) {
	all := mustRender(t, "--values", valuesFiles(t)["everything"])
	var pods monitoringv1.PodMonitor
	all.of(t, "PodMonitor").as(t, &pods)
	if !pods.Spec.NamespaceSelector.Any {
		t.Errorf("the pods of runs are scraped only in %v", pods.Spec.NamespaceSelector)
	}
	pods = monitoringv1.PodMonitor{}
	mustRender(t, "--values", valuesFiles(t)["namespaced"], "--set", "podMonitor.enabled=true").of(t, "PodMonitor").as(t, &pods)
	if in := pods.Spec.NamespaceSelector; in.Any || !slices.Equal(in.MatchNames, []string{"team-a", "team-b"}) {
		t.Errorf("the pods of runs are scraped in %v", in)
	}
	var monitor monitoringv1.ServiceMonitor
	all.of(t, "ServiceMonitor").as(t, &monitor)
	service := all.of(t, "Service")
	for key, value := range monitor.Spec.Selector.MatchLabels {
		if got := service.at("metadata.labels." + strings.ReplaceAll(key, ".", `\.`)); got != value {
			t.Errorf("%s of the Service is %v, the ServiceMonitor asks for %s", key, got, value)
		}
	}
	if port := monitor.Spec.Endpoints[0].Port; port != service.at("spec.ports.0.name") {
		t.Errorf("the ServiceMonitor scrapes the port %s", port)
	}
	// The alerts and the dashboard select by the job that Prometheus makes of the Service's name.
	rules := fmt.Sprint(all.of(t, "PrometheusRule"))
	if !strings.Contains(rules, fmt.Sprintf("job=%q", service.name())) {
		t.Errorf("the alerts are not about the job %s", service.name())
	}
}

func TestDashboard(t *testing.T) {
	type target struct{ Expr, LegendFormat string }
	type panel struct {
		ID                       int
		Type, Title, Description string
		GridPos                  struct{ X, Y, W, H int }
		Targets                  []target
	}
	var dashboard struct {
		UID, Title string
		Panels     []panel
		Templating struct {
			List []struct{ Name, Definition string }
		}
	}
	text, _ := mustRender(t, "--set", "dashboard.enabled=true").of(t, "ConfigMap").at(`data.longstrap\.json`).(string)
	if err := json.Unmarshal([]byte(text), &dashboard); err != nil {
		t.Fatal(err)
	}
	known := metrics(t)
	unused := maps.Clone(known)
	ids := map[int]bool{}
	taken := map[[2]int]string{}
	for _, p := range dashboard.Panels {
		if ids[p.ID] {
			t.Errorf("%s: the id %d is used twice", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%s lies on %s or beyond the edge", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Description == "" || len(p.Targets) == 0 {
			t.Errorf("%s: no description, or nothing to show", p.Title)
		}
		for _, target := range p.Targets {
			used, err := check(strings.ReplaceAll(target.Expr, "$__rate_interval", "5m"), known)
			if err != nil {
				t.Errorf("%s: %v\n%s", p.Title, err, target.Expr)
			}
			for _, name := range used {
				delete(unused, name)
			}
			for _, label := range regexp.MustCompile(`{{(\w+)}}`).FindAllStringSubmatch(target.LegendFormat, -1) {
				if label[1] != "pod" && !regexp.MustCompile(`by \([^)]*\b`+label[1]+`\b`).MatchString(target.Expr) {
					t.Errorf("%s: the label %s of the legend is not in the result", p.Title, label[1])
				}
			}
		}
	}
	for _, variable := range dashboard.Templating.List {
		if metric := regexp.MustCompile(`label_values\((\w+)`).FindStringSubmatch(variable.Definition); metric != nil && known[metric[1]] == nil {
			t.Errorf("variable %s: there is no metric %s", variable.Name, metric[1])
		}
	}
	// A number that nobody can see is not worth exporting.
	for _, name := range []string{"longstrap_reconcile_seconds_sum", "longstrap_reconcile_seconds_count", "longstrap_run_progress_time_seconds", "process_start_time_seconds"} {
		delete(unused, name)
	}
	if left := slices.Sorted(maps.Keys(unused)); len(left) > 0 {
		t.Errorf("the dashboard does not show %v", left)
	}
}
