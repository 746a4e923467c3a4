"""The names on a span: what services, collector and stores agree on.

HTTP names are OpenTelemetry's (semantic conventions 1.44, "HTTP server"); `user.*` are its user attributes;
`tailscale.*` and `tailspan.*` are ours. No attribute ever holds a query string.
"""

from typing import Final

METHOD: Final = "http.request.method"  # one of METHODS, else "_OTHER"
METHOD_ORIGINAL: Final = "http.request.method_original"  # only where METHOD is "_OTHER"
ROUTE: Final = "http.route"  # the route's template; absent for an unmatched path
STATUS: Final = "http.response.status_code"
ERROR_TYPE: Final = "error.type"  # class of the exception, else the status code from 500 up
PATH: Final = "url.path"
SCHEME: Final = "url.scheme"
PROTOCOL_VERSION: Final = "network.protocol.version"
CLIENT_ADDRESS: Final = "client.address"  # the caller as vouched for by the proxy, else the peer
PEER_ADDRESS: Final = "network.peer.address"  # the other end of the connection; absent on a unix socket
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
USER_AGENT: Final = "user_agent.original"
SERVICE: Final = "service.name"  # resource
ENVIRONMENT: Final = "deployment.environment.name"  # resource

LOGIN: Final = "user.name"
FULL_NAME: Final = "user.full_name"
NODE: Final = "tailscale.node"  # the device's short name
NODE_ID: Final = "tailscale.node.id"  # its stable id
TAGS: Final = "tailscale.tags"
ADDRESS: Final = "tailscale.address"  # only where a trusted proxy or the connection itself vouches for it
GUESS: Final = "tailspan.device.guess"  # what the user agent names while no node is known

KIND: Final = "tailspan.kind"  # request | view | heartbeat
SOURCE: Final = "tailspan.source"  # live | log | page
IDENTITY_SOURCE: Final = "tailspan.identity.source"  # serve_header | nginx_auth | whois | status | device_list | none
CLAIM: Final = "tailspan.identity.claim"  # of a log's line: the login it names, believed where its service is declared
PROVEN: Final = "tailspan.identity.proven"  # false where a tailnet peer could have reached us past the proxy
CALLER: Final = "tailspan.caller"  # person | tagged | shared | funnel | local | unknown
TRAFFIC: Final = "tailspan.traffic"  # agent | internal | health | asset | page | poll | api
POLL: Final = "tailspan.poll"  # of a log's line: true where its rhythm is a poll's, which the line alone does not tell
BY_PROXY: Final = "tailspan.by_proxy"  # of a log's line: true where the proxy asked no service for the answer
PAGE: Final = "tailspan.page"
TIMED: Final = "tailspan.timed"  # false where start to end is not a response time: null in every answer
CARD: Final = "tailspan.card"  # view: which card
VARIANT: Final = "tailspan.variant"  # view: in which of its forms
VISIBLE_MS: Final = "tailspan.visible_ms"  # view: how long it was seen; absent where that is not known
STOPPED: Final = "tailspan.stopped"  # heartbeat: a clean stop
FORGED: Final = "tailspan.forged"  # heartbeat: requests in which somebody claimed what only a trusted proxy may say
FORGED_KINDS: Final = "tailspan.forged.kinds"  # heartbeat: of which kind how many, as in "bypass=1,untrusted=2"
UNPROVEN: Final = "tailspan.unproven"  # heartbeat: requests whose headers were believed without proof
DROPPED: Final = "tailspan.dropped"  # heartbeat: spans lost
OPEN_REQUESTS: Final = "tailspan.open_requests"  # heartbeat: requests open for over a minute
SCHEMA: Final = "tailspan.schema"

SCHEMA_VERSION: Final = 1
MAX_LENGTH: Final = 1024  # characters of any value taken from a request; stores keep as many bytes
METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "QUERY"))
