{{/* The operator's name. Not "longstrap": that is the label by which it finds the children of runs. */}}
{{- define "longstrap.name" -}}
{{- default "longstrap-operator" .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The release's name, with the chart's where it does not contain it. 52: names with a suffix fit too. */}}
{{- define "longstrap.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "longstrap.selector" -}}
app.kubernetes.io/name: {{ include "longstrap.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "longstrap.labels" -}}
{{ include "longstrap.selector" . }}
app.kubernetes.io/part-of: longstrap
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "longstrap.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "longstrap.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: required when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* The namespaces to watch, sorted and each once, as JSON; empty: all. */}}
{{- define "longstrap.namespaces" -}}
{{- .Values.namespaces | sortAlpha | uniq | toJson -}}
{{- end -}}

{{/* A reference to an image: registry/repository@digest, else registry/repository:tag. */}}
{{- define "longstrap.reference" -}}
{{- $registry := .registry | trimSuffix "/" -}}
{{- if $registry }}{{ $registry }}/{{ end }}{{ .repository }}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end -}}
{{- end -}}

{{- define "longstrap.registry" -}}
{{- (.Values.global).imageRegistry | default .Values.image.registry -}}
{{- end -}}

{{- define "longstrap.image" -}}
{{- include "longstrap.reference" (dict
  "registry" (include "longstrap.registry" .)
  "repository" .Values.image.repository
  "tag" (.Values.image.tag | default .Chart.AppVersion)
  "digest" .Values.image.digest) -}}
{{- end -}}

{{/* Image of the pods of runs. The operator's digest and tag hold only for the operator's repository. */}}
{{- define "longstrap.workerImage" -}}
{{- $own := .Values.workerImage -}}
{{- $same := or (not $own.repository) (eq $own.repository .Values.image.repository) -}}
{{- $tag := $own.tag | default (ternary .Values.image.tag "" $same) | default .Chart.AppVersion -}}
{{- $digest := $own.digest | default (ternary .Values.image.digest "" (and $same (not $own.tag))) -}}
{{- include "longstrap.reference" (dict
  "registry" (include "longstrap.registry" .)
  "repository" ($own.repository | default .Values.image.repository)
  "tag" $tag
  "digest" $digest) -}}
{{- end -}}
