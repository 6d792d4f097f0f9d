{{- /* The operator's rights on jobs and what it makes of them, and no more. Secrets: it makes one per job and can read
none; a PATCH would answer with the data, so there is none either. */}}
{{- define "finetune.rules" -}}
- apiGroups: [finetune.dev]
  resources: [finetunejobs]
  verbs: [get, list, watch, delete]  # delete: ttlSecondsAfterFinished
- apiGroups: [finetune.dev]
  resources: [finetunejobs/status]
  verbs: [patch]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch{{ if .Values.operator.forceDelete }}, delete{{ end }}]  # delete: of a node that is gone
{{- if .Values.operator.forceDelete }}
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]  # such a pod is marked as failed: its kubelet cannot
{{- end }}
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
- apiGroups: [""]
  resources: [events]
  verbs: [create, list]
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]  # is it being deleted? Kubernetes waits for the pods of a Job that waits to replace them
{{- end }}

{{- define "finetune.nodeRules" -}}
- apiGroups: [""]
  resources: [nodes]
  verbs: [get{{ if .Values.operator.readNodes }}, list{{ end }}]  # is this node gone? which GPUs do they have?
{{- end }}
