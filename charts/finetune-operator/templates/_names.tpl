{{- /* Names, labels and images that the templates share. */}}

{{- define "finetune.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "finetune.fullname" -}}
{{- $name := include "finetune.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "finetune.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "finetune.fullname" .) "default") }}
{{- end }}

{{- define "finetune.tokenSecret" -}}
{{- .Values.tokenKey.existingSecret | default (printf "%s-token-key" (include "finetune.fullname" .)) }}
{{- end }}

{{- /* What pods are selected by: never changes in the life of a release. */}}
{{- define "finetune.selector" -}}
app.kubernetes.io/name: {{ include "finetune.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "finetune.labels" -}}
{{- $ours := dict
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
  "app.kubernetes.io/version" .Chart.AppVersion
  "app.kubernetes.io/managed-by" .Release.Service }}
{{- toYaml (mergeOverwrite (dict) .Values.labels $ours (include "finetune.selector" . | fromYaml)) }}
{{- end }}

{{- define "finetune.podLabels" -}}
{{- toYaml (mergeOverwrite (dict) .Values.labels .Values.podLabels (include "finetune.selector" . | fromYaml)) }}
{{- end }}

{{- /* Image reference. Call with (list . .Values.image). */}}
{{- define "finetune.image" -}}
{{- $chart := (index . 0).Chart }}
{{- $image := index . 1 }}
{{- if $image.digest }}
{{- printf "%s@%s" $image.repository $image.digest }}
{{- else }}
{{- printf "%s:%s" $image.repository ($image.tag | default $chart.AppVersion) }}
{{- end }}
{{- end }}
