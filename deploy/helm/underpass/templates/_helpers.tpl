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

{{/* A node folder, from (list ROOT VALUE): the value, else the platform's, else the default. */}}
{{- define "underpass.folder" -}}
{{- $root := index . 0 }}
{{- $value := index . 1 }}
{{- $defaults := dict "cniBinDir" "/opt/cni/bin" "cniConfDir" "/etc/cni/net.d" "cniNetnsDir" "/var/run/netns" }}
{{- $k3s := "/var/lib/rancher/k3s" }}
{{- $microk8s := "/var/snap/microk8s/current" }}
{{- $platforms := dict
      "gke" (dict "cniBinDir" "/home/kubernetes/bin")
      "k3d" (dict "cniBinDir" "/bin" "cniConfDir" (print $k3s "/agent/etc/cni/net.d"))
      "k3s" (dict "cniBinDir" (print $k3s "/data/cni") "cniConfDir" (print $k3s "/agent/etc/cni/net.d"))
      "microk8s" (dict "cniBinDir" (print $microk8s "/opt/cni/bin") "cniConfDir" (print $microk8s "/args/cni-network"))
      "minikube" (dict "cniNetnsDir" "/var/run/docker/netns") }}
{{- $platform := get $platforms $root.Values.global.platform | default dict }}
{{- get $root.Values.cni $value | default (get $platform $value) | default (get $defaults $value) }}
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
