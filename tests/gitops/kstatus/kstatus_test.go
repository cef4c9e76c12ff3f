// Package kstatus computes what kubectl wait, Flux and other tools see of an object in each phase.
package kstatus

import (
	"maps"
	"os"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

// Written by the planner's own tests (operator/src/plan/tests/phases.rs): the objects with the status
// that the planner gives them.
const phases = "../../../operator/src/plan/tests/phases.json"

const reconciling = "Pending while reconciling"

func isTrue(object map[string]any, condition string) bool {
	conditions, _, _ := unstructured.NestedSlice(object, "status", "conditions")
	return slices.ContainsFunc(conditions, func(c any) bool {
		fields, _ := c.(map[string]any)
		return fields["type"] == condition && fields["status"] == "True"
	})
}

func TestEveryPhaseReadsAsWeSay(t *testing.T) {
	wanted := map[string]status.Status{
		"Failed":    status.FailedStatus,
		"Complete":  status.CurrentStatus,
		"Blocked":   status.FailedStatus,
		"Suspended": status.CurrentStatus,
		"Pending":   status.CurrentStatus,
		"Queued":    status.CurrentStatus,
		"Running":   status.CurrentStatus,
	}
	text, err := os.ReadFile(phases)
	if err != nil {
		t.Fatal(err)
	}
	var objects []map[string]any
	if err := json.Unmarshal(text, &objects); err != nil {
		t.Fatalf("%s: %v", phases, err)
	}
	seen := map[string]bool{}
	for _, object := range objects {
		live := &unstructured.Unstructured{Object: object}
		phase, _, _ := unstructured.NestedString(object, "status", "phase")
		result, err := status.Compute(live)
		if err != nil {
			t.Fatalf("%s in phase %s: %v", live.GetKind(), phase, err)
		}
		want := wanted[phase]
		// The present spec could not be planned yet: not current in whatever phase.
		if isTrue(object, "Reconciling") {
			phase, want = reconciling, status.InProgressStatus
		}
		if result.Status != want {
			t.Errorf("%s in phase %s is %s (%s), want %s", live.GetKind(), phase, result.Status, result.Message, want)
		}
		seen[live.GetKind()+" "+phase] = true
	}
	phases := append(slices.Collect(maps.Keys(wanted)), reconciling)
	for _, kind := range []string{"SynthesisJob", "ContextExtensionRun"} {
		for _, phase := range phases {
			if !seen[kind+" "+phase] {
				t.Errorf("no %s in phase %s", kind, phase)
			}
		}
	}
}
