{{/* Labels of everything. */}}
{{- define "underpass.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: istio
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* The image, by (list ROOT NAME). */}}
{{- define "underpass.image" -}}
{{- $root := index . 0 }}
{{- $name := index . 1 }}
{{- if contains "/" $name }}
{{- $name }}
{{- else }}
{{- printf "%s/%s:%s" $root.Values.global.hub $name (default $root.Chart.AppVersion (toString $root.Values.global.tag)) }}
{{- end }}
{{- end }}

{{/* A folder of the node, by (list ROOT VALUE): what the value says, else the platform, else what is usual. */}}
{{- define "underpass.folder" -}}
{{- $root := index . 0 }}
{{- $value := index . 1 }}
{{- $usual := dict "cniBinDir" "/opt/cni/bin" "cniConfDir" "/etc/cni/net.d" "cniNetnsDir" "/var/run/netns" }}
{{- $k3s := "/var/lib/rancher/k3s" }}
{{- $microk8s := "/var/snap/microk8s/current" }}
{{- $platforms := dict
      "gke" (dict "cniBinDir" "/home/kubernetes/bin")
      "k3d" (dict "cniBinDir" "/bin" "cniConfDir" (print $k3s "/agent/etc/cni/net.d"))
      "k3s" (dict "cniBinDir" (print $k3s "/data/cni") "cniConfDir" (print $k3s "/agent/etc/cni/net.d"))
      "microk8s" (dict "cniBinDir" (print $microk8s "/opt/cni/bin") "cniConfDir" (print $microk8s "/args/cni-network"))
      "minikube" (dict "cniNetnsDir" "/var/run/docker/netns") }}
{{- $platform := get $platforms $root.Values.global.platform | default dict }}
{{- get $root.Values.cni $value | default (get $platform $value) | default (get $usual $value) }}
{{- end }}

{{/* Where istiod is, by a value that may say another place. */}}
{{- define "underpass.istiod" -}}
{{- $proxy := (index . 0).Values.ztunnel }}
{{- $revision := empty $proxy.revision | ternary "" (print "-" $proxy.revision) }}
{{- index . 1 | default (printf "https://istiod%s.%s.svc:15012" $revision $proxy.istioNamespace) }}
{{- end }}

{{/* Labels of pods: those by which their DaemonSet knows them are not among them. */}}
{{- define "underpass.podLabels" -}}
sidecar.istio.io/inject: "false"
istio.io/dataplane-mode: none
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{/* Environment variables, from names and values. */}}
{{- define "underpass.env" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{/* Environment variables that say where a container runs. */}}
{{- define "underpass.whereabouts" -}}
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

{{/* Where and when a pod runs, by the values of its DaemonSet. */}}
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
