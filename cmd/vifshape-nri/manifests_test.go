package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	rbac "k8s.io/api/rbac/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/tctest"
)

const manifests = "../../examples/kubernetes"

// manifest reads one into a type of Kubernetes, whose keys are all that it may have.
func manifest(t *testing.T, name string, to any) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(manifests, name))
	if err == nil {
		err = yaml.UnmarshalStrict(b, to)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return b
}

// kustomization is what of one is used here; its type is kustomize's.
type kustomization struct {
	APIVersion, Kind, Namespace string
	Resources                   []string
	ConfigMapGenerator          []struct {
		Name  string
		Files []string
	}
	GeneratorOptions struct{ DisableNameSuffixHash bool }
	Patches          []struct{ Path string }
	Images           []struct{ Name, NewName, NewTag string }
}

// podMonitor is what of one is used here; its type is the Prometheus operator's.
type podMonitor struct {
	meta.TypeMeta   `json:",inline"`
	meta.ObjectMeta `json:"metadata"`
	Spec            struct {
		Selector            meta.LabelSelector
		PodMetricsEndpoints []struct {
			Port, Scheme  string
			TLSConfig     struct{ InsecureSkipVerify bool }
			Authorization struct{ Credentials core.SecretKeySelector }
			Relabelings   []struct {
				SourceLabels []string
				TargetLabel  string
			}
		}
	}
}

// confined holds that a container may no more than it has to.
func confined(t *testing.T, c core.Container) {
	t.Helper()
	s := c.SecurityContext
	if s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
		t.Fatalf("%s: its root can be written to", c.Name)
	}
	if s.Privileged != nil || len(s.Capabilities.Drop) != 1 || s.Capabilities.Drop[0] != "ALL" || s.SeccompProfile == nil || s.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault ||
		c.Name != "agent" && (len(s.Capabilities.Add) > 0 || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation) {
		t.Errorf("%s: may more than it has to", c.Name)
	}
}

// objects reads the documents of a text, each into the type of its kind.
func objects(t *testing.T, text string) []meta.Object {
	t.Helper()
	var all []meta.Object
	for part := range strings.SplitSeq(text, "\n---\n") {
		var is meta.TypeMeta
		if err := yaml.Unmarshal([]byte(part), &is); err != nil {
			t.Fatal(err)
		}
		var o meta.Object
		switch is.APIVersion + " " + is.Kind {
		case "v1 Namespace":
			o = &core.Namespace{}
		case "v1 ConfigMap":
			o = &core.ConfigMap{}
		case "v1 Secret":
			o = &core.Secret{}
		case "v1 ServiceAccount":
			o = &core.ServiceAccount{}
		case "apps/v1 DaemonSet":
			o = &apps.DaemonSet{}
		case "networking.k8s.io/v1 NetworkPolicy":
			o = &networking.NetworkPolicy{}
		case "rbac.authorization.k8s.io/v1 ClusterRole":
			o = &rbac.ClusterRole{}
		case "rbac.authorization.k8s.io/v1 ClusterRoleBinding":
			o = &rbac.ClusterRoleBinding{}
		case "monitoring.coreos.com/v1 PodMonitor":
			o = &podMonitor{}
		default:
			t.Fatalf("%+v is nothing that is known here:\n%s", is, part)
		}
		if err := yaml.UnmarshalStrict([]byte(part), o); err != nil {
			t.Fatalf("%v:\n%s", err, part)
		}
		all = append(all, o)
	}
	return all
}

// TestManifests holds that the manifests are what Kubernetes knows, that they name each other's
// parts and the program's flags, and that the policy in them is one.
func TestManifests(t *testing.T) {
	var set apps.DaemonSet
	manifest(t, "daemonset.yaml", &set)
	var net networking.NetworkPolicy
	manifest(t, "networkpolicy.yaml", &net)
	var space core.Namespace
	manifest(t, "namespace.yaml", &space)
	var all kustomization
	manifest(t, "kustomization.yaml", &all)

	spec := set.Spec.Template.Spec
	label := set.Spec.Template.Labels
	for _, of := range []map[string]string{set.Spec.Selector.MatchLabels, net.Spec.PodSelector.MatchLabels} {
		for k, v := range of {
			if label[k] != v {
				t.Errorf("%s=%s is no label of the pods: %v", k, v, label)
			}
		}
	}
	for _, r := range all.Resources {
		if _, err := os.Stat(filepath.Join(manifests, r)); err != nil {
			t.Error(err)
		}
	}
	if all.Namespace != space.Name || len(all.ConfigMapGenerator) != 1 || all.ConfigMapGenerator[0].Name != spec.Volumes[0].ConfigMap.Name {
		t.Errorf("%+v", all)
	}
	volumes := map[string]bool{}
	for _, v := range spec.Volumes {
		volumes[v.Name] = true
	}
	for _, c := range spec.Containers {
		for _, m := range c.VolumeMounts {
			if !volumes[m.Name] {
				t.Errorf("%s: there is no volume %s", c.Name, m.Name)
			}
		}
		confined(t, c)
		if c.Image != all.Images[0].Name || c.Resources.Limits.Memory().IsZero() {
			t.Errorf("%s: image %q, memory %v", c.Name, c.Image, c.Resources.Limits.Memory())
		}
	}
	file := filepath.Join(manifests, all.ConfigMapGenerator[0].Files[0])
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	p, err := policy.Parse(file, bytes.NewReader(b), qdisc.Kinds())
	if err != nil || len(p.Warnings) > 0 {
		t.Fatalf("%v, %v", err, p.Warnings)
	}
	var texts []string
	for _, s := range p.Specs[0].Children {
		for _, x := range s.Pods {
			texts = append(texts, string(x))
		}
	}
	if want := []string{"shop/*", "batch/*", "shop/label:tier=batch"}; !slices.Equal(texts, want) {
		t.Errorf("pods: %s", strings.Join(texts, " "))
	}
}

// TestMetricsManifests holds that what the component metrics adds fits together, and the DaemonSet.
func TestMetricsManifests(t *testing.T) {
	var part kustomization
	manifest(t, "metrics/kustomization.yaml", &part)
	names := slices.Clone(part.Resources)
	for _, p := range part.Patches {
		names = append(names, p.Path)
	}
	accounts, secrets, roles := map[string]bool{}, map[string]string{}, map[string]bool{"system:auth-delegator": true}
	var monitor *podMonitor
	var set apps.DaemonSet
	var net networking.NetworkPolicy
	var bindings []rbac.ClusterRoleBinding
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(manifests, "metrics", name))
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects(t, string(b)) {
			switch o := o.(type) {
			case *core.ServiceAccount:
				accounts[o.Name] = true
			case *core.Secret:
				if o.Type == core.SecretTypeServiceAccountToken {
					secrets[o.Name] = o.Annotations[core.ServiceAccountNameKey]
				}
			case *rbac.ClusterRole:
				roles[o.Name] = true
			case *rbac.ClusterRoleBinding:
				bindings = append(bindings, *o)
			case *podMonitor:
				monitor = o
			case *apps.DaemonSet:
				set = *o
			case *networking.NetworkPolicy:
				net = *o
			}
		}
	}
	spec := set.Spec.Template.Spec
	if len(spec.Containers) != 1 || monitor == nil || len(monitor.Spec.PodMetricsEndpoints) != 1 || len(net.Spec.Ingress) != 1 {
		t.Fatalf("%+v, %+v, %+v", spec.Containers, monitor, net)
	}
	proxy, asks := spec.Containers[0], monitor.Spec.PodMetricsEndpoints[0]
	confined(t, proxy)
	if len(proxy.Ports) != 1 || proxy.Ports[0].Name != asks.Port || net.Spec.Ingress[0].Ports[0].Port.StrVal != asks.Port {
		t.Errorf("port %s: %+v, %+v", asks.Port, proxy.Ports, net.Spec.Ingress)
	}
	if proxy.Image != part.Images[0].Name || !accounts[spec.ServiceAccountName] || !accounts[secrets[asks.Authorization.Credentials.Name]] {
		t.Errorf("image %s, accounts %v, of them %s, secrets %v", proxy.Image, accounts, spec.ServiceAccountName, secrets)
	}
	for _, b := range bindings {
		if !roles[b.RoleRef.Name] || len(b.Subjects) != 1 || !accounts[b.Subjects[0].Name] || b.Subjects[0].Namespace != "vifshape" {
			t.Errorf("%+v", b)
		}
	}
	var whole apps.DaemonSet
	manifest(t, "daemonset.yaml", &whole)
	exporter := whole.Spec.Template.Spec.Containers[2]
	if at := exporter.Args[len(exporter.Args)-1]; !slices.Contains(proxy.Args, "--upstream=http://"+at+"/") {
		t.Errorf("the exporter answers at %s, and the proxy asks by %q", at, proxy.Args)
	}
}

// TestKustomize holds that kustomize makes of the folder what Kubernetes knows, with the component
// and without.
func TestKustomize(t *testing.T) {
	kubectl := tctest.RequireProgram(t, "kubectl")
	version, err := exec.Command(kubectl, "version", "--client").Output()
	if err != nil {
		t.Fatal(err)
	}
	tctest.Require(t, strings.Contains(string(version), "Kustomize Version: v5."), "program kubectl with kustomize 5")
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(manifests)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "kustomization.yaml")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		from, to   string
		kinds      []string
		containers int
	}{
		{"", "", []string{"ConfigMap", "DaemonSet", "Namespace", "NetworkPolicy"}, 3},
		{"# components: [metrics]", "components: [metrics]", []string{
			"ClusterRole", "ClusterRoleBinding", "ClusterRoleBinding", "ConfigMap", "DaemonSet", "Namespace", "NetworkPolicy", "PodMonitor", "Secret", "ServiceAccount", "ServiceAccount",
		}, 4},
	} {
		text := strings.Replace(string(b), tt.from, tt.to, 1)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil || !strings.Contains(text, tt.to) {
			t.Fatalf("%v: no %q in\n%s", err, tt.from, text)
		}
		out, err := exec.Command(kubectl, "kustomize", dir).Output()
		if err != nil {
			t.Fatalf("kubectl kustomize: %v", err)
		}
		var kinds []string
		for _, o := range objects(t, string(out)) {
			kinds = append(kinds, reflect.ValueOf(o).Elem().FieldByName("Kind").String())
			set, ok := o.(*apps.DaemonSet)
			if !ok {
				continue
			}
			if n := len(set.Spec.Template.Spec.Containers); n != tt.containers {
				t.Errorf("%q: the DaemonSet has %d containers", tt.to, n)
			}
			for _, c := range set.Spec.Template.Spec.Containers {
				if !strings.HasPrefix(c.Image, "registry.example/") {
					t.Errorf("%q: %s: image %s", tt.to, c.Name, c.Image)
				}
			}
		}
		if slices.Sort(kinds); !slices.Equal(kinds, tt.kinds) {
			t.Errorf("%q: %q", tt.to, kinds)
		}
	}
}
