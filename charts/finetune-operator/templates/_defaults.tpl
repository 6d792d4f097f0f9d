{{- /* Puts the default where a value is missing: `--set x=null` takes a value away, and `--reuse-values` brings those of an
older chart, which had fewer. files/defaults.yaml is made from values.yaml. Every template begins with it. */}}
{{- define "finetune.defaults" -}}
{{- include "finetune.fill" (list .Values (.Files.Get "files/defaults.yaml" | fromYaml)) }}
{{- end }}

{{- define "finetune.fill" -}}
{{- $values := index . 0 }}
{{- range $key, $default := index . 1 }}
{{- if or (not (hasKey $values $key)) (kindIs "invalid" (get $values $key)) }}
{{- $_ := set $values $key $default }}
{{- else if and (kindIs "map" $default) $default }}
{{- include "finetune.fill" (list (get $values $key) $default) }}
{{- end }}
{{- end }}
{{- end }}
