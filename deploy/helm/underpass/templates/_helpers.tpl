{{/* Labels of all objects. */}}
{{- define "underpass.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: istio
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* The image reference, from (list ROOT NAME). */}}
{{- define "underpass.image" -}}
{{- $root := index . 0 }}
{{- $name := index . 1 }}
{{- if contains "/" $name }}
{{- $name }}
{{- else }}
{{- printf "%s/%s:%s" $root.Values.global.hub $name (default $root.Chart.AppVersion (toString $root.Values.global.tag)) }}
{{- end }}
{{- end }}

{{/*
What the platform determines, as YAML: folders of the node, the SELinux type, whether a quota must
allow pods of the priority system-node-critical, and whether the plugin must outlive Underpass.
docs/platforms.md has the reasons. Platforms without an entry use the defaults.
*/}}
{{- define "underpass.platforms" -}}
gke: { cniBinDir: /home/kubernetes/bin, quota: true }
k3d: { cniBinDir: /bin, cniConfDir: /var/lib/rancher/k3s/agent/etc/cni/net.d }
k3s:
  cniBinDir: /var/lib/rancher/k3s/data/cni
  cniConfDir: /var/lib/rancher/k3s/agent/etc/cni/net.d
  seLinuxType: spc_t
microk8s:
  cniBinDir: /var/snap/microk8s/current/opt/cni/bin
  cniConfDir: /var/snap/microk8s/current/args/cni-network
minikube: { cniNetnsDir: /var/run/docker/netns }
openshift:
  cniBinDir: /var/lib/cni/bin
  cniConfDir: /etc/kubernetes/cni/net.d
  seLinuxType: spc_t
  keepPlugin: true
rke2: { seLinuxType: spc_t }
bottlerocket: { seLinuxType: spc_t }
{{- end }}

{{/* The platform's settings, as YAML. */}}
{{- define "underpass.platform" -}}
{{- get (include "underpass.platforms" . | fromYaml) .Values.global.platform | default dict | toYaml }}
{{- end }}

{{/* A node folder, from (list ROOT VALUE): the value, else the platform's, else the default. */}}
{{- define "underpass.folder" -}}
{{- $root := index . 0 }}
{{- $value := index . 1 }}
{{- $defaults := dict "cniBinDir" "/opt/cni/bin" "cniConfDir" "/etc/cni/net.d" "cniNetnsDir" "/var/run/netns" }}
{{- $platform := include "underpass.platform" $root | fromYaml }}
{{- get $root.Values.cni $value | default (get $platform $value) | default (get $defaults $value) }}
{{- end }}

{{/* The SELinux options of a container, from (list ROOT VALUES): the value, else the platform's. */}}
{{- define "underpass.seLinux" -}}
{{- $platform := include "underpass.platform" (index . 0) | fromYaml }}
{{- $options := (index . 1).seLinuxOptions }}
{{- if $options }}
seLinuxOptions:
  {{- toYaml $options | nindent 2 }}
{{- else if $platform.seLinuxType }}
seLinuxOptions:
  type: {{ $platform.seLinuxType }}
{{- end }}
{{- end }}

{{/*
OpenShift's permission to run pods with the node's network, folders and capabilities. Its constraint
`privileged` only permits them; the containers of this chart are not privileged.
*/}}
{{- define "underpass.sccRule" -}}
- apiGroups: [security.openshift.io]
  resources: [securitycontextconstraints]
  resourceNames: [privileged]
  verbs: [use]
{{- end }}

{{/* The address of istiod, from (list ROOT OVERRIDE). */}}
{{- define "underpass.istiod" -}}
{{- $proxy := (index . 0).Values.ztunnel }}
{{- $revision := empty $proxy.revision | ternary "" (print "-" $proxy.revision) }}
{{- index . 1 | default (printf "https://istiod%s.%s.svc:15012" $revision $proxy.istioNamespace) }}
{{- end }}

{{/* Labels of pods, without the selector labels of their DaemonSet. */}}
{{- define "underpass.podLabels" -}}
sidecar.istio.io/inject: "false"
istio.io/dataplane-mode: none
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{/* Environment variables, from a dict of names and values. */}}
{{- define "underpass.env" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{/* Environment variables with the node, name and namespace of the pod. */}}
{{- define "underpass.podFields" -}}
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
{{- end }}

{{/* Scheduling of a pod, from the values of its DaemonSet. */}}
{{- define "underpass.placement" -}}
priorityClassName: system-node-critical
terminationGracePeriodSeconds: {{ .terminationGracePeriodSeconds }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Times of a liveness probe that detects a hang and tolerates slowness: six times ten seconds. */}}
{{- define "underpass.hangProbe" -}}
initialDelaySeconds: 30
periodSeconds: 10
timeoutSeconds: 10
failureThreshold: 6
{{- end }}
