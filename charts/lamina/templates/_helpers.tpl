{{- define "lamina.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "lamina.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains (include "lamina.name" .) .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "lamina.name" .) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "lamina.selector" -}}
app.kubernetes.io/name: {{ include "lamina.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: laminad
{{- end -}}

{{- define "lamina.labels" -}}
app.kubernetes.io/name: {{ include "lamina.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "lamina.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}

{{- /* A size of the config ("96MiB", 4096) in bytes, exactly. The schema has checked its form. */ -}}
{{- define "lamina.bytes" -}}
{{- if kindIs "string" . -}}
{{- $unit := regexFind "[KMGT]?" (regexFind "[A-Za-z]*$" .) -}}
{{- mul (regexFind "^[0-9]+" . | int64) (get (dict "" 1 "K" 1024 "M" 1048576 "G" 1073741824 "T" 1099511627776) $unit | int64) -}}
{{- else -}}
{{- int64 . -}}
{{- end -}}
{{- end -}}

{{- /* A pod's fixed memory: what its guest needs beside the limits, and what its VM takes on the host. */ -}}
{{- define "lamina.podFixedMemory" -}}
{{- $bytes := add (include "lamina.bytes" .Values.config.sizing.overhead_memory | int64) (include "lamina.bytes" .Values.config.hypervisor.vmm_overhead_memory | int64) -}}
{{- if eq (mod $bytes 1048576) 0 -}}
{{- printf "%dMi" (div $bytes 1048576) -}}
{{- else -}}
{{- printf "%d" $bytes -}}
{{- end -}}
{{- end -}}

{{- define "lamina.scheme" -}}
{{- ternary "HTTPS" "HTTP" (not (empty .Values.rest.tlsSecret)) -}}
{{- end -}}

{{- /* Every value is written as JSON, whose texts, numbers, booleans and lists are TOML's too. */ -}}
{{- define "lamina.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $laminad := deepCopy (default dict $config.laminad) -}}
{{- $_ := set $laminad "rest_address" (printf "%s:%d" .Values.rest.address (int64 .Values.rest.port)) -}}
{{- if .Values.rest.tokenSecret -}}
{{- $_ := set $laminad "rest_token_file" "/rest/token/token" -}}
{{- end -}}
{{- if .Values.rest.tlsSecret -}}
{{- $_ := set $laminad "rest_tls_certificate" "/rest/tls/tls.crt" -}}
{{- $_ := set $laminad "rest_tls_key" "/rest/tls/tls.key" -}}
{{- end -}}
{{- $_ := set $config "laminad" $laminad -}}
{{- range $section, $options := $config }}
[{{ $section }}]
{{- range $key, $value := $options }}
{{ $key }} = {{ toRawJson $value }}
{{- end }}
{{- end }}
{{- end -}}
