package charts

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/timestamp"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

// TestWhenAlertsFire evaluates each alert over series with a sample a minute: "0x10 1x5" is eleven
// zeros, then six ones. S stands for the labels of the operator's own numbers, J for those of runs.
func TestWhenAlertsFire(t *testing.T) {
	var all monitoringv1.PrometheusRule
	mustRender(t, "--set", "prometheusRule.enabled=true").of(t, "PrometheusRule").as(t, &all)
	rules, tried := map[string]monitoringv1.Rule{}, map[string]bool{}
	for _, rule := range all.Spec.Groups[0].Rules {
		rules[strings.TrimPrefix(rule.Alert, "Longstrap")] = rule
	}
	for _, test := range []struct {
		alert  string
		series []string
		// Fires at the last sample, with a summary that contains this; empty: does not fire.
		summary string
	}{
		{"NoLeader", []string{`longstrap_leader{S,pod="a"} 1x10`, `longstrap_leader{S,pod="b"} 0x10`}, ""},
		{"NoLeader", []string{`longstrap_leader{S,pod="a"} 1x5 0x5`, `longstrap_leader{S,pod="b"} 0x10`}, "No Longstrap operator leads."},
		// A change of leaders.
		{"NoLeader", []string{`longstrap_leader{S,pod="a"} 1x8 0x1`, `longstrap_leader{S,pod="b"} 0x10`}, ""},
		{"NoLeader", []string{`longstrap_leader{job="r-longstrap-metrics",namespace="elsewhere"} 1x10`}, "No Longstrap operator leads."},
		{"WatchStale", []string{`longstrap_watch_age_seconds{S,watch="jobs"} 400x10`, `longstrap_watch_age_seconds{S,watch="pods"} 30x10`}, "about jobs"},
		{"WatchStale", []string{`longstrap_watch_age_seconds{S,watch="jobs"} 60x10`}, ""},
		{"ObjectsUnreadable", []string{`longstrap_unreadable_objects{S,watch="jobs"} 0x10`, `longstrap_unreadable_objects{S,watch="synthesisjobs"} 2x10`}, "2 of the synthesisjobs"},
		{"ObjectsUnreadable", []string{`longstrap_unreadable_objects{S,watch="jobs"} 0x10`}, ""},
		{"ReconcilePanics", []string{`longstrap_reconciles_total{S,result="panic"} 3x30`}, ""},
		{"ReconcilePanics", []string{`longstrap_reconciles_total{S,result="panic"} 3x30 4x4`}, "panicked"},
		// The first one makes the series.
		{"ReconcilePanics", []string{`longstrap_reconciles_total{S,result="panic"} _x30 1x4`}, "panicked"},
		{"ReconcilePanics", []string{`longstrap_reconciles_total{S,result="panic"} _x9 1x21`}, ""},
		{"ReconcileErrors", []string{`longstrap_queue_objects{S,state="failing"} 2x20`}, "2 object(s)"},
		{"ReconcileErrors", []string{`longstrap_queue_objects{S,state="failing"} 0x15 2x5`}, ""},
		{"WritesRefused", []string{`longstrap_writes_total{S,verb="create",kind="Job",result="error"} 0+6x40`, `longstrap_writes_total{S,verb="create",kind="Job",result="ok"} 0+1x40`}, "create Job"},
		{"WritesRefused", []string{`longstrap_writes_total{S,verb="create",kind="Job",result="error"} 0+1x40`, `longstrap_writes_total{S,verb="create",kind="Job",result="ok"} 0+6x40`}, ""},
		{"QueueLong", []string{`longstrap_queue_objects{S,state="due"} 150x20`}, "150 objects"},
		{"QueueLong", []string{`longstrap_queue_objects{S,state="waiting"} 5000x20`}, ""},
		{"RunBlocked", []string{`longstrap_objects{S,kind="SynthesisJob",phase="Blocked",pod="a"} 1x20`, `longstrap_objects{S,kind="SynthesisJob",phase="Blocked",pod="b"} 1x20`}, "1 SynthesisJob(s)"},
		{"RunBlocked", []string{`longstrap_objects{S,kind="SynthesisJob",phase="Queued"} 1x20`}, ""},
		{"RunFailed", []string{`longstrap_events_total{S,reason="DeadlineExceeded"} _x30 1x4`}, "for good: DeadlineExceeded"},
		{"RunFailed", []string{`longstrap_events_total{S,reason="BackoffLimitExceeded"} 1x30 2x4`}, "for good: BackoffLimitExceeded"},
		{"RunFailed", []string{`longstrap_events_total{S,reason="BackoffLimitExceeded"} 1x30 2x30`}, ""},
		{"RunFailed", []string{`longstrap_events_total{S,reason="PodFailed"} _x30 1x4`}, ""},
		{"RunWithoutProgress", []string{`longstrap_run_progress_ratio{J,step="train-0"} 0.5x80`}, "ContextExtensionRun ml/long has not got on in train-0 for 60 minutes"},
		{"RunWithoutProgress", []string{`longstrap_run_progress_ratio{J,step="train-0"} 0.1+0.001x80`}, ""},
		// Too young to tell.
		{"RunWithoutProgress", []string{`longstrap_run_progress_ratio{J,step="train-0"} _x40 0.5x40`}, ""},
		// Another leader asks since a moment ago.
		{"RunWithoutProgress", []string{`longstrap_run_progress_ratio{J,step="train-0",pod="a"} 0.5x60 _x20`, `longstrap_run_progress_ratio{J,step="train-0",pod="b"} _x60 0.5x20`}, "ml/long"},
		{"RunWithoutProgress", []string{`longstrap_run_progress_ratio{J,step="train-0"} 1x80`}, ""},
		{"RunWithoutProgress", []string{`longstrap_run_progress_ratio{J,step="train-0"} 0.5x80`, `longstrap_run_waiting{J,step="train-0"} 1x80`}, ""},
		{"RunWithoutProgress", []string{`longstrap_run_progress_ratio{J,step="train-0"} 0.5x80`, `longstrap_run_waiting{J,step="train-0"} 0x80`}, "ml/long"},
		{"RunWaiting", []string{`longstrap_run_waiting{J,step="generate"} 1x20`}, "ml/long waits"},
		{"RunWaiting", []string{`longstrap_run_waiting{J,step="generate"} 0x10 1x10`}, ""},
		{"RunUnstable", []string{`longstrap_run_gang_generation{J,step="train-0"} 3+1x10`}, "10 times anew"},
		{"RunUnstable", []string{`longstrap_run_gang_generation{J,step="train-0"} 7x60 8x10`}, ""},
	} {
		rule, found := rules[test.alert]
		if !found {
			t.Errorf("there is no alert %s", test.alert)
			continue
		}
		tried[test.alert] = true
		if got := summary(t, rule, load(t, test.series)); (got == "") != (test.summary == "") || !strings.Contains(got, test.summary) {
			t.Errorf("%s of %q: %q, expected %q", test.alert, test.series, got, test.summary)
		}
	}
	for name := range rules {
		if !tried[name] {
			t.Errorf("%s is not tried", name)
		}
	}
}

const minute = int64(60_000)

// sample is a number at a minute.
type sample struct {
	minute int
	value  float64
}

func (s sample) T() int64                      { return int64(s.minute) * minute }
func (s sample) ST() int64                     { return 0 }
func (s sample) F() float64                    { return s.value }
func (s sample) H() *histogram.Histogram       { return nil }
func (s sample) FH() *histogram.FloatHistogram { return nil }
func (s sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample           { return s }

// memory holds series, and tells when the last sample was.
type memory struct {
	series []*storage.SeriesEntry
	last   int
}

func load(t *testing.T, lines []string) memory {
	t.Helper()
	var all memory
	for _, line := range lines {
		line = strings.Replace(line, "{S,", `{job="r-longstrap-metrics",namespace="system",`, 1)
		line = strings.Replace(line, "{J,", `{job="r-longstrap-metrics",namespace="ml",kind="ContextExtensionRun",name="long",`, 1)
		lset, values, err := parser.NewParser(parser.Options{}).ParseSeriesDesc(line)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		var samples []chunks.Sample
		for i, value := range values {
			if !value.Omitted {
				samples = append(samples, sample{i, value.Value})
			}
		}
		all.series = append(all.series, storage.NewListSeries(lset, samples))
		all.last = max(all.last, len(values)-1)
	}
	return all
}

// found is a storage.SeriesSet.
type found struct {
	series []*storage.SeriesEntry
	at     int
}

func (f *found) Next() bool                        { f.at++; return f.at <= len(f.series) }
func (f *found) At() storage.Series                { return f.series[f.at-1] }
func (f *found) Err() error                        { return nil }
func (f *found) Warnings() annotations.Annotations { return nil }

func (m memory) search(_ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	matches := func(s *storage.SeriesEntry) bool {
		return !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(s.Lset.Get(m.Name)) })
	}
	var result found
	for _, s := range m.series {
		if matches(s) {
			result.series = append(result.series, s)
		}
	}
	return &result
}

func (m memory) evaluate(t *testing.T, engine *promql.Engine, expression string, at int) promql.Vector {
	t.Helper()
	queryable := &storage.MockQueryable{MockQuerier: &storage.MockQuerier{SelectMockFunction: m.search}}
	query, err := engine.NewInstantQuery(context.Background(), queryable, nil, expression, timestamp.Time(int64(at)*minute))
	if err != nil {
		t.Fatal(err)
	}
	defer query.Close()
	result, err := query.Exec(context.Background()).Vector()
	if err != nil {
		t.Fatal(err)
	}
	return slices.Clone(result)
}

// summary is that of the alert as it fires at the last sample, after its `for`; empty: it does not.
func summary(t *testing.T, rule monitoringv1.Rule, numbers memory) string {
	t.Helper()
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1 << 20, Timeout: time.Minute, Parser: parser.NewParser(parser.Options{})})
	defer engine.Close()
	var held time.Duration
	if rule.For != nil {
		var err error
		if held, err = time.ParseDuration(string(*rule.For)); err != nil {
			t.Fatal(err)
		}
	}
	firing := numbers.evaluate(t, engine, rule.Expr.String(), numbers.last)
	for before := 1; before <= int(held.Minutes()); before++ {
		then := numbers.evaluate(t, engine, rule.Expr.String(), numbers.last-before)
		firing = slices.DeleteFunc(firing, func(now promql.Sample) bool {
			return !slices.ContainsFunc(then, func(s promql.Sample) bool { return labels.Equal(s.Metric, now.Metric) })
		})
	}
	var texts []string
	for _, s := range firing {
		text := strings.ReplaceAll(rule.Annotations["summary"], "{{ $value }}", fmt.Sprint(s.F))
		s.Metric.Range(func(l labels.Label) { text = strings.ReplaceAll(text, "{{ $labels."+l.Name+" }}", l.Value) })
		texts = append(texts, text)
	}
	return strings.Join(texts, "\n")
}
