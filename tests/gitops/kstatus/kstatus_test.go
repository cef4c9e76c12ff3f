// Package kstatus computes what kubectl wait, Flux and other tools see of an object in each phase.
package kstatus

import (
	"os"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

// Written by the planner's own tests (operator/src/plan/tests/phases.rs): the objects with the status
// that the planner gives them.
const phases = "../../../operator/src/plan/tests/phases.json"

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
		if result.Status != wanted[phase] {
			t.Errorf("%s in phase %s is %s (%s), want %s", live.GetKind(), phase, result.Status, result.Message, wanted[phase])
		}
		seen[live.GetKind()+" "+phase] = true
	}
	for _, kind := range []string{"SynthesisJob", "ContextExtensionRun"} {
		for phase := range wanted {
			if !seen[kind+" "+phase] {
				t.Errorf("no %s in phase %s", kind, phase)
			}
		}
	}
}
