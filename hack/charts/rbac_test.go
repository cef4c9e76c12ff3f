package charts

import (
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
)

// rights are "verb group/resource[:name]", sorted.
func rights(rules []rbacv1.PolicyRule) []string {
	var all []string
	for _, rule := range rules {
		names := rule.ResourceNames
		if len(names) == 0 {
			names = []string{""}
		}
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					for _, name := range names {
						if name != "" {
							name = ":" + name
						}
						all = append(all, verb+" "+group+"/"+resource+name)
					}
				}
			}
		}
	}
	slices.Sort(all)
	return all
}

func rulesOf(t *testing.T, all objects, kind, namespace, name string) []rbacv1.PolicyRule {
	t.Helper()
	for _, o := range all.named(kind) {
		if o.name() == name && o.namespace() == namespace {
			var role rbacv1.Role
			o["kind"] = "Role"
			o.as(t, &role)
			o["kind"] = kind
			return role.Rules
		}
	}
	t.Fatalf("no %s %s in %q", kind, name, namespace)
	return nil
}

// TestRoles: no wildcard anywhere; the operator has the same rights in a listed namespace as in all, and
// reads no Secret.
func TestRoles(t *testing.T) {
	files := valuesFiles(t)
	clusterWide, namespaced := mustRender(t, "--values", files["default"]), mustRender(t, "--values", files["namespaced"])
	for _, o := range append(clusterWide.named("Role", "ClusterRole"), namespaced.named("Role", "ClusterRole")...) {
		for _, right := range rights(rulesOf(t, objects{o}, o.kind(), o.namespace(), o.name())) {
			for _, bad := range []string{"* ", "/*", "secrets", "finalizers", "escalate", "bind", "impersonate"} {
				if strings.Contains(right, bad) {
					t.Errorf("%s %s may %s", o.kind(), o.name(), right)
				}
			}
		}
	}
	everywhere := rights(rulesOf(t, clusterWide, "ClusterRole", "", "r-longstrap"))
	identity := "get /namespaces:kube-system"
	if !slices.Contains(everywhere, identity) {
		t.Errorf("the cluster's identity cannot be read: %v", everywhere)
	}
	everywhere = slices.DeleteFunc(everywhere, func(right string) bool { return right == identity })
	for _, namespace := range []string{"team-a", "team-b"} {
		if here := rights(rulesOf(t, namespaced, "Role", namespace, "r-longstrap")); !slices.Equal(here, everywhere) {
			t.Errorf("%s: %v, cluster-wide: %v", namespace, here, everywhere)
		}
	}
	given := rights(rulesOf(t, mustRender(t, "--values", files["everything"]), "ClusterRole", "", "extension"))
	if !slices.Equal(given, everywhere) {
		t.Errorf("an identity that is given need not be read: %v", given)
	}
	lease := []string{"create coordination.k8s.io/leases", "get coordination.k8s.io/leases:r-longstrap", "update coordination.k8s.io/leases:r-longstrap"}
	if got := rights(rulesOf(t, clusterWide, "Role", "system", "r-longstrap-election")); !slices.Equal(got, lease) {
		t.Errorf("the Lease: %v", got)
	}
}

// TestBindings: each names a role of the release, in its place, and the operator's ServiceAccount alone.
func TestBindings(t *testing.T) {
	for _, name := range []string{"default", "namespaced", "everything"} {
		all := mustRender(t, "--values", valuesFiles(t)[name])
		account := all.of(t, "ServiceAccount")
		bindings := all.named("RoleBinding", "ClusterRoleBinding")
		if len(bindings) < 2 {
			t.Errorf("%s: %d bindings", name, len(bindings))
		}
		for _, o := range bindings {
			var binding rbacv1.RoleBinding
			kind := o.kind()
			o["kind"] = "RoleBinding"
			o.as(t, &binding)
			rulesOf(t, all, binding.RoleRef.Kind, o.namespace(), binding.RoleRef.Name)
			want := rbacv1.Subject{Kind: "ServiceAccount", Name: account.name(), Namespace: account.namespace()}
			if len(binding.Subjects) != 1 || binding.Subjects[0] != want {
				t.Errorf("%s: %s %s is for %v", name, kind, o.name(), binding.Subjects)
			}
		}
	}
}

func TestRolesOfUsers(t *testing.T) {
	all := mustRender(t)
	for role, into := range map[string][]string{"r-longstrap-editor": {"admin", "edit"}, "r-longstrap-viewer": {"view"}} {
		for _, o := range all.named("ClusterRole") {
			for _, target := range []string{"admin", "edit", "view"} {
				got := o.at(`metadata.labels.rbac\.authorization\.k8s\.io/aggregate-to-` + target)
				if o.name() == role && (got == "true") != slices.Contains(into, target) {
					t.Errorf("%s into %s: %v", role, target, got)
				}
			}
		}
		for _, right := range rights(rulesOf(t, all, "ClusterRole", "", role)) {
			writes := !strings.Contains(right, "get ") && !strings.Contains(right, "list ") && !strings.Contains(right, "watch ")
			if writes && (role == "r-longstrap-viewer" || strings.Contains(right, "/status")) {
				t.Errorf("%s may %s", role, right)
			}
		}
	}
}
