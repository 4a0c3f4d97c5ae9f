{{- define "mapbridge.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "mapbridge.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains (include "mapbridge.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "mapbridge.name" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "mapbridge.selectorLabels" -}}
app.kubernetes.io/name: {{ include "mapbridge.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "mapbridge.labels" -}}
{{ include "mapbridge.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "mapbridge.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "mapbridge.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- define "mapbridge.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end }}

{{/*
The configuration file. @NODE@ and @BROKER@ are filled in on the node, by the init container. Values
come with whole numbers as 3.0, which TOML takes for another type: they are written as 3.
*/}}
{{- define "mapbridge.toml" -}}
{{- $secret := .Values.broker.existingSecret.name -}}
{{- if and (not .Values.broker.url) (not $secret) -}}
{{- fail "broker: needs url, or existingSecret.name with the URL in it" -}}
{{- end -}}
{{- if and .Values.broker.url $secret -}}
{{- fail "broker: needs one of url and existingSecret.name (got both)" -}}
{{- end -}}
{{- $node := dict "name" "@NODE@" "cluster" .Values.cluster "state_dir" "/var/lib/mapbridge" -}}
{{- $url := ternary "@BROKER@" .Values.broker.url (not (empty $secret)) -}}
{{- $broker := merge (dict "url" $url "replicas" .Values.broker.replicas) .Values.broker.options -}}
{{- $http := dict "listen" (printf "0.0.0.0:%d" (int .Values.http.port)) -}}
{{- $all := dict "node" $node "broker" $broker "capture" .Values.capture "http" $http -}}
{{- $all = merge $all (deepCopy .Values.config) (dict "maps" .Values.maps) -}}
{{- regexReplaceAll "(?m)^(\\s*\\S+ = -?[0-9]+)\\.0$" (toToml $all) "${1}" -}}
{{- end }}
