{{/* Paths and ports inside the pod. Containerfile and docs/CONFIGURATION.md use the same. */}}
{{- define "dps-proxy.configDir" -}}/etc/dps-proxy/config{{- end }}
{{- define "dps-proxy.secretsDir" -}}/etc/dps-proxy/secrets{{- end }}
{{- define "dps-proxy.storeDir" -}}/var/lib/dps-proxy{{- end }}

{{- define "dps-proxy.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* At most 50 characters, so that `-headless` and the pod's `-0` still fit into a DNS label. */}}
{{- define "dps-proxy.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "dps-proxy.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "dps-proxy.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "dps-proxy.selectorLabels" -}}
app.kubernetes.io/name: {{ include "dps-proxy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "dps-proxy.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "dps-proxy.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "dps-proxy.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* The first public host name: the value is one, or a list of them. */}}
{{- define "dps-proxy.hostName" -}}
{{- $name := .Values.config.device.host_name }}
{{- if kindIs "slice" $name }}{{ first $name }}{{ else }}{{ $name }}{{ end }}
{{- end }}

{{/* A duration of the configuration ("90s", "1m 30s", "500ms") in whole seconds, rounded up. Arguments: key, value. */}}
{{- define "dps-proxy.seconds" -}}
{{- $milliseconds := 0 }}
{{- $text := toString .value | nospace }}
{{- if not (regexMatch "^([0-9]+(ms|s|m|h))+$" $text) }}
{{- fail (printf "config.%s: %q is not a duration such as 20s, 1m 30s or 500ms" .key (toString .value)) }}
{{- end }}
{{- range regexFindAll "[0-9]+(ms|s|m|h)" $text -1 }}
{{- $number := regexFind "^[0-9]+" . | int64 }}
{{- $factor := get (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000) (regexFind "[a-z]+$" .) }}
{{- $milliseconds = add $milliseconds (mul $number $factor) }}
{{- end }}
{{- div (add $milliseconds 999) 1000 }}
{{- end }}

{{/* What the shutdown needs at least, in seconds: Kubernetes must not kill a pod that is still draining. */}}
{{- define "dps-proxy.graceNeeded" -}}
{{- $shutdown := .Values.config.shutdown }}
{{- $delay := include "dps-proxy.seconds" (dict "key" "shutdown.readiness_delay" "value" $shutdown.readiness_delay) }}
{{- $drain := include "dps-proxy.seconds" (dict "key" "shutdown.drain_timeout" "value" $shutdown.drain_timeout) }}
{{- add $delay $drain (int .Values.shutdownMarginSeconds) }}
{{- end }}

{{- define "dps-proxy.grace" -}}
{{- $needed := include "dps-proxy.graceNeeded" . | int }}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds }}
{{- $needed }}
{{- else if lt (int .Values.terminationGracePeriodSeconds) $needed }}
{{- fail (printf "terminationGracePeriodSeconds: %d is less than the shutdown needs: %d = config.shutdown.readiness_delay + config.shutdown.drain_timeout + shutdownMarginSeconds" (int .Values.terminationGracePeriodSeconds) $needed) }}
{{- else }}
{{- int .Values.terminationGracePeriodSeconds }}
{{- end }}
{{- end }}

{{/* Everything that contradicts itself, told in one place before anything is rendered. */}}
{{- define "dps-proxy.validate" -}}
{{- if gt (int .Values.replicas) 1 }}
{{- fail (printf "replicas: %d pods with the embedded store would be %d ledgers, and together they would exceed the quota of every DPS instance; use 1 (or 0 to stop)" (int .Values.replicas) (int .Values.replicas)) }}
{{- end }}
{{- if not .Values.config.device.host_name }}
{{- fail "config.device.host_name: required: the public host name that devices use" }}
{{- end }}
{{- range $listener, $tls := .Values.tls }}
{{- if and $tls.enabled (not $tls.existingSecret) }}
{{- fail (printf "tls.%s.existingSecret: required: a Secret of type kubernetes.io/tls (or tls.%s.enabled=false where something else protects the way)" $listener $listener) }}
{{- end }}
{{- end }}
{{- range $name, $value := .Values.extraEnv }}
{{- if regexMatch "(?i)^DPS_PROXY__(SHUTDOWN__|STORE__PATH|(DEVICE|BACKEND|OPERATOR)__(LISTEN|TLS))" $name }}
{{- fail (printf "extraEnv.%s: the chart has to know this; set it in config, tls or persistence" $name) }}
{{- end }}
{{- end }}
{{- if and .Values.secrets.data (not .Values.secrets.create) }}
{{- fail "secrets.data: refused without secrets.create=true, because its values stand in Helm's release record; put them into a Secret and name it in secrets.mounts" }}
{{- end }}
{{- if and .Values.secrets.create (not .Values.secrets.data) }}
{{- fail "secrets.data: required if secrets.create is true" }}
{{- end }}
{{- range $name := list "created" "tls-device" "tls-backend" "tls-operator" }}
{{- if hasKey $.Values.secrets.mounts $name }}
{{- fail (printf "secrets.mounts.%s: the chart uses this name itself" $name) }}
{{- end }}
{{- end }}
{{- $own := list "listen" "tls" "tls_cert_file" "tls_key_file" }}
{{- range $section, $keys := dict "store" (list "path") "device" $own "backend" $own "operator" $own }}
{{- range $key := $keys }}
{{- if hasKey (get $.Values.config $section | default dict) $key }}
{{- fail (printf "config.%s.%s: the chart sets this itself%s" $section $key (ternary " from the value listenAddress" "" (eq $key "listen"))) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and .Values.serviceMonitor.enabled (not (and .Values.serviceMonitor.tokenSecret.name .Values.serviceMonitor.tokenSecret.key)) }}
{{- fail "serviceMonitor.tokenSecret: name and key are required: /metrics asks for an operator token with the read role" }}
{{- end }}
{{- end }}

{{/* The configuration as given, with what only the chart can know. */}}
{{- define "dps-proxy.config" -}}
{{- include "dps-proxy.validate" . }}
{{- $own := dict "store" (dict "path" (include "dps-proxy.storeDir" .)) }}
{{- range $listener, $port := dict "device" 8443 "backend" 8081 "operator" 8082 }}
{{- $section := dict "listen" (printf "%s:%d" $.Values.listenAddress $port) "tls" "off" }}
{{- if (get $.Values.tls $listener).enabled }}
{{- $folder := printf "%s/tls-%s" (include "dps-proxy.secretsDir" $) $listener }}
{{- $_ := set $section "tls" "on" }}
{{- $_ := set $section "tls_cert_file" (printf "%s/tls.crt" $folder) }}
{{- $_ := set $section "tls_key_file" (printf "%s/tls.key" $folder) }}
{{- end }}
{{- $_ := set $own $listener $section }}
{{- end }}
{{- include "dps-proxy.toml" (dict "path" "" "table" (mergeOverwrite (deepCopy .Values.config) $own)) }}
{{- end }}

{{/* A table as TOML. Not Helm's `toToml`: Helm reads every number as a float, so that 1000 would come out as 1000.0, which is
another type in TOML. Arguments: path (of the table, empty at the top), table. */}}
{{- define "dps-proxy.toml" -}}
{{- $path := .path }}
{{- $scalars := list }}
{{- $tables := list }}
{{- range $key, $value := .table }}
{{- $name := include "dps-proxy.tomlKey" $key }}
{{- $full := ternary $name (printf "%s.%s" $path $name) (eq $path "") }}
{{- if kindIs "map" $value }}
{{- $tables = append $tables (printf "\n[%s]\n%s" $full (include "dps-proxy.toml" (dict "path" $full "table" $value))) }}
{{- else if and (kindIs "slice" $value) $value (kindIs "map" (first $value)) }}
{{- range $value }}
{{- $tables = append $tables (printf "\n[[%s]]\n%s" $full (include "dps-proxy.toml" (dict "path" $full "table" .))) }}
{{- end }}
{{- else if not (kindIs "invalid" $value) }}
{{- $scalars = append $scalars (printf "%s = %s\n" $name (include "dps-proxy.tomlValue" (dict "key" $full "value" $value))) }}
{{- end }}
{{- end }}
{{- join "" $scalars }}
{{- join "" $tables }}
{{- end }}

{{- define "dps-proxy.tomlKey" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . }}{{ . }}{{ else }}{{ toRawJson . }}{{ end }}
{{- end }}

{{/* A value that is not a table. A JSON string is a TOML string too. */}}
{{- define "dps-proxy.tomlValue" -}}
{{- $key := .key }}
{{- if kindIs "string" .value }}
{{- toRawJson .value }}
{{- else if kindIs "bool" .value }}
{{- .value }}
{{- else if kindIs "slice" .value }}
{{- $items := list }}
{{- range .value }}
{{- $items = append $items (include "dps-proxy.tomlValue" (dict "key" $key "value" .)) }}
{{- end }}
{{- printf "[%s]" (join ", " $items) }}
{{- else if or (kindIs "map" .value) (kindIs "invalid" .value) }}
{{- fail (printf "config.%s: a list holds values or tables, not both and no null" $key) }}
{{- else if eq (float64 .value) (float64 (int64 .value)) }}
{{- int64 .value }}
{{- else }}
{{- toRawJson .value }}
{{- end }}
{{- end }}
