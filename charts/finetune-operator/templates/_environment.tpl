{{- /* The operator's environment: flags of `python -m finetune_operator` in their variables' form. A name comes once:
Helm 4 installs by server-side apply, which refuses a list with the same key twice. extraEnv wins. USER: Kopf asks for
the name of its user, and fails where /etc/passwd has none for the id. */}}
{{- define "finetune.environment" -}}
{{- $ours := list
  (dict "name" "POD_NAME" "valueFrom" (dict "fieldRef" (dict "fieldPath" "metadata.name")))
  (dict "name" "POD_NAMESPACE" "valueFrom" (dict "fieldRef" (dict "fieldPath" "metadata.namespace")))
  (dict "name" "HOME" "value" "/tmp")
  (dict "name" "USER" "value" "finetune-operator")
  (dict "name" "FINETUNE_OPERATOR_NAMESPACES" "value" (join "," .Values.watchNamespaces))
  (dict "name" "FINETUNE_OPERATOR_TRAINER_IMAGE" "value" (include "finetune.image" (list . .Values.trainerImage)))
  (dict "name" "FINETUNE_OPERATOR_IMAGE_PULL_POLICY" "value" .Values.trainerImage.pullPolicy)
  (dict "name" "FINETUNE_OPERATOR_TOKEN_KEY_FILE" "value" "/etc/finetune-operator/token/key")
  (dict "name" "FINETUNE_OPERATOR_HTTP_PORT" "value" "8080") }}
{{- range $setting, $value := .Values.operator }}
{{- $ours = append $ours (dict "name" (printf "FINETUNE_OPERATOR_%s" ($setting | snakecase | upper)) "value" (kindIs "slice" $value | ternary (join "," $value) (toString $value))) }}
{{- end }}
{{- $last := dict }}
{{- $names := list }}
{{- range concat $ours .Values.extraEnv }}
{{- $names = append $names .name }}
{{- $_ := set $last .name . }}
{{- end }}
{{- $environment := list }}
{{- range uniq $names }}
{{- $environment = append $environment (get $last .) }}
{{- end }}
{{- toYaml $environment }}
{{- end }}
