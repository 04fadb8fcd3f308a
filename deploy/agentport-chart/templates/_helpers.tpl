{{/* The name of everything, cut to what a label may have. */}}
{{- define "agentport.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "agentport.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 48 | trimSuffix "-" -}}
{{- else if contains (include "agentport.name" .) .Release.Name -}}
{{- .Release.Name | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "agentport.name" .) | trunc 48 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "agentport.selector" -}}
app.kubernetes.io/name: {{ include "agentport.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: gateway
{{- end }}

{{- define "agentport.labels" -}}
{{ include "agentport.selector" . }}
{{ include "agentport.common" . }}
{{- end }}

{{/* Labels of what is not the gateway itself. */}}
{{- define "agentport.common" -}}
app.kubernetes.io/part-of: agentport
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}

{{- define "agentport.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "agentport.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.create is false: write serviceAccount.name" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{/* Every namespace of agents, as a list in JSON. */}}
{{- define "agentport.agentNamespaces" -}}
{{- $all := default list .Values.networkPolicy.agentNamespaces -}}
{{- range $tenant, $own := .Values.tenantNamespaces -}}
{{- if not (hasKey $.Values.tenants $tenant) -}}{{- fail (printf "tenantNamespaces.%s: no such tenant: write tenants.%s, its policy" $tenant $tenant) -}}{{- end -}}
{{- range $own -}}
{{- if has . $all -}}{{- fail (printf "tenantNamespaces.%s: %s is another's too: a namespace is of one tenant" $tenant .) -}}{{- end -}}
{{- $all = append $all . -}}
{{- end -}}
{{- end -}}
{{- $all | toJson -}}
{{- end }}

{{/* An image by its digest, where there is one. */}}
{{- define "agentport.image" -}}
{{- $tag := default .appVersion .image.tag -}}
{{- if .image.digest -}}
{{- printf "%s:%s@%s" .image.repository $tag .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository $tag -}}
{{- end -}}
{{- end }}

{{/* allowedDestinations as a list, whether it was given as one or as a string. */}}
{{- define "agentport.destinations" -}}
{{- $given := .Values.allowedDestinations -}}
{{- if kindIs "string" $given -}}{{- $given = splitList "," $given -}}{{- end -}}
{{- $list := list -}}
{{- range $given -}}{{- if trim . -}}{{- $list = append $list (trim .) -}}{{- end -}}{{- end -}}
{{- $list | toJson -}}
{{- end }}

{{/* agentport.yaml: what this chart knows, and .Values.config over it. */}}
{{- define "agentport.config" -}}
{{- $keys := "/etc/agentport/keys" -}}
{{- $identity := dict -}}
{{- if .Values.keys.signingKey -}}{{- $_ := set $identity "signing_key" (printf "%s/%s" $keys .Values.keys.signingKey) -}}{{- end -}}
{{- if .Values.keys.secretFile -}}{{- $_ := set $identity "secret_file" (printf "%s/%s" $keys .Values.keys.secretFile) -}}{{- end -}}
{{- $trusted := list -}}
{{- range .Values.keys.trusted -}}
{{- $trusted = append $trusted (set (deepCopy .) "file" (printf "%s/%s" $keys .file)) -}}
{{- end -}}
{{- if $trusted -}}{{- $_ := set $identity "keys" $trusted -}}{{- end -}}
{{- if .Values.kubernetesTokens.enabled -}}
{{- $k := .Values.kubernetesTokens -}}
{{- $account := "/var/run/secrets/agentport/account" -}}
{{- $issuer := dict
      "issuer" $k.issuer
      "audience" $k.audience
      "jwks_url" "https://kubernetes.default.svc/openid/v1/jwks"
      "ca" (printf "%s/ca.crt" $account)
      "token_file" (printf "%s/token" $account)
      "addresses" (list $k.serviceCidr)
      "agent_claim" "sub"
      "agent_pattern" "system:serviceaccount:{namespace}:{name}"
      "agent" "{namespace}.{name}" -}}
{{- if $k.tenantIsNamespace -}}{{- $_ := set $issuer "tenant" "{namespace}" -}}{{- end -}}
{{- $_ := set $identity "issuers" (list $issuer) -}}
{{- end -}}
{{- if not $identity -}}{{- fail "nobody could be known: write keys.signingKey, keys.secretFile, keys.trusted or kubernetesTokens.enabled" -}}{{- end -}}
{{- $config := dict
      "listen" (dict "egress" (list "0.0.0.0:8080") "admin" "0.0.0.0:9090")
      "policy" "/etc/agentport/policies"
      "mode" .Values.mode
      "identity" $identity
      "limits" (dict "replicas" (int .Values.replicaCount))
      "timeouts" (dict "drain" (printf "%ds" (int .Values.drainSeconds)))
      "log" (dict "format" "json") -}}
{{- if include "agentport.tls" . -}}{{- $_ := set $config.listen "egress_tls" (list "0.0.0.0:8443") -}}{{- end -}}
{{- if .Values.certManager.enabled -}}
{{- $tls := "/etc/agentport/tls" -}}
{{- $clients := dict "certificates" .Values.certManager.clients -}}
{{- if ne .Values.certManager.clients "none" -}}
{{- $_ := set $clients "ca" (printf "%s/ca.crt" $tls) -}}
{{- $_ := set $clients "names" (list (printf "spiffe://%s/agent/{agent}" .Values.certManager.trustDomain)) -}}
{{- $_ := set $identity "require" .Values.certManager.require -}}
{{- end -}}
{{- $_ := set $config "tls" (dict
      "certificates" (list (dict "certificate" (printf "%s/tls.crt" $tls) "key" (printf "%s/tls.key" $tls)))
      "clients" $clients) -}}
{{- end -}}
{{- if .Values.acme.enabled -}}
{{- $tls := default dict $config.tls -}}
{{- $_ := set $tls "acme" (include "agentport.acme" . | fromYaml) -}}
{{- $_ := set $config "tls" $tls -}}
{{- end -}}
{{- if .Values.peers.enabled -}}
{{- $files := "/etc/agentport/peers-tls" -}}
{{- $_ := set $config.listen "peers" "0.0.0.0:9443" -}}
{{- $_ := set $config "peers" (dict
      "certificates" (list (dict "certificate" (printf "%s/tls.crt" $files) "key" (printf "%s/tls.key" $files)))
      "ca" (printf "%s/ca.crt" $files)
      "names" (default (list (printf "spiffe://%s/agent/{agent}" .Values.certManager.trustDomain)) .Values.peers.names)
      "domain" .Values.peers.domain
      "agents" "/etc/agentport/peers/agents.yaml") -}}
{{- end -}}
{{- with .Values.upstreamProxy -}}
{{- if .url -}}
{{- $files := "/etc/agentport/upstream-proxy" -}}
{{- $proxy := dict "url" .url "address" .address -}}
{{- if .existingSecret -}}
{{- if not (or .credentialsKey .caKey) -}}{{- fail "upstreamProxy.existingSecret has no file that is taken: write credentialsKey or caKey" -}}{{- end -}}
{{- with .credentialsKey -}}{{- $_ := set $proxy "credentials_file" (printf "%s/%s" $files .) -}}{{- end -}}
{{- with .caKey -}}{{- $_ := set $proxy "ca" (printf "%s/%s" $files .) -}}{{- end -}}
{{- else if .caKey -}}
{{- fail "upstreamProxy.caKey: write upstreamProxy.existingSecret, which has it" -}}
{{- end -}}
{{- $direct := .noProxy -}}
{{- /* The API server, where its keys are asked for, is inside. */ -}}
{{- if $.Values.kubernetesTokens.enabled -}}{{- $direct = append $direct "kubernetes.default.svc" | uniq -}}{{- end -}}
{{- with $direct -}}{{- $_ := set $proxy "no_proxy" . -}}{{- end -}}
{{- $_ := set $config "upstream_proxy" $proxy -}}
{{- else if or .existingSecret .noProxy .to -}}
{{- fail "upstreamProxy has no effect without its url: write that too" -}}
{{- end -}}
{{- end -}}
{{- $destinations := include "agentport.destinations" . | fromJsonArray -}}
{{- if $destinations -}}{{- $_ := set $config "allowed_destinations" $destinations -}}{{- end -}}
{{- mergeOverwrite $config (deepCopy .Values.config) | toYaml -}}
{{- end }}

{{/* Whether agents may come by TLS. */}}
{{- define "agentport.tls" -}}
{{- if or .Values.certManager.enabled .Values.acme.enabled -}}yes{{- end -}}
{{- end }}

{{/* The port of the upstream proxy. */}}
{{- define "agentport.upstreamProxyPort" -}}
{{- $url := urlParse .Values.upstreamProxy.url -}}
{{- if regexMatch ":[0-9]+$" $url.host -}}
{{- regexFind "[0-9]+$" $url.host -}}
{{- else -}}
{{- eq $url.scheme "https" | ternary "443" "80" -}}
{{- end -}}
{{- end }}

{{/* tls.acme, where what is wrong is refused before a CA is asked for anything. */}}
{{- define "agentport.acme" -}}
{{- $a := .Values.acme -}}
{{- if not $a.directory -}}{{- fail "acme.enabled: write acme.directory, the URL of the ACME server's directory" -}}{{- end -}}
{{- if not $a.domains -}}{{- fail "acme.enabled: write acme.domains, the names that agents use for the gateway" -}}{{- end -}}
{{- if and (ne $a.storage.accessMode "ReadWriteMany") (or .Values.autoscaling.enabled (gt (int .Values.replicaCount) 1)) -}}
{{- fail (printf "acme.storage.accessMode %s is one replica's: several would each order a certificate. Write replicaCount: 1 without autoscaling, or ReadWriteMany" $a.storage.accessMode) -}}
{{- end -}}
{{- if and (eq $a.challenge "tls-alpn-01") (eq $a.service.type "LoadBalancer") (not $a.service.loadBalancerSourceRanges) -}}
{{- fail "tls-alpn-01 is asked for at the agents' own port, which a LoadBalancer opens to everybody: write acme.service.loadBalancerSourceRanges, or acme.challenge: http-01" -}}
{{- end -}}
{{- $acme := dict "directory" $a.directory "domains" $a.domains "challenge" $a.challenge "dir" "/var/lib/agentport/acme/store" -}}
{{- if eq $a.challenge "http-01" -}}{{- $_ := set $acme "http_listen" "0.0.0.0:8081" -}}{{- end -}}
{{- with $a.contact -}}{{- $_ := set $acme "contact" . -}}{{- end -}}
{{- with $a.caFile -}}{{- $_ := set $acme "ca" (printf "/etc/agentport/keys/%s" .) -}}{{- end -}}
{{- if or $a.eab.kid $a.eab.keyFile -}}
{{- if not (and $a.eab.kid $a.eab.keyFile) -}}{{- fail "acme.eab: write both kid and keyFile" -}}{{- end -}}
{{- $_ := set $acme "eab" (dict "kid" $a.eab.kid "key_file" (printf "/etc/agentport/keys/%s" $a.eab.keyFile)) -}}
{{- end -}}
{{- $acme | toYaml -}}
{{- end }}

{{/* What restricted pod security asks of a container. */}}
{{- define "agentport.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}
