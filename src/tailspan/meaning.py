"""What stored spans mean when a question is answered, in DuckDB's SQL: names, traffic, page loads, sessions.

A request is a number, a time and a row of `about`. Nearly all meaning lies in the few thousand rows of `about`, so it
is worked out there, into the table `described`, and requests only meet the outcome by number. What needs the order of
requests is first folded into slots of time, which is exact:
- in a slot of 30 minutes there is no gap of 30 minutes, so pauses show between slots' first and last requests;
- a page load is a stretch of 5 seconds, so a call meets its stretch by tab and slot of 5 seconds, in a hash join.
"""

import threading
from typing import Any, Final

import duckdb

from tailspan.labels import ADMITTED, Checker, Labels

DESCRIBED_TABLE: Final = "meaning.described"  # in memory
S: Final = 10**9
PAUSE: Final = 30 * 60 * S  # from here on it is another session, and another page load
LOAD: Final = 5 * S  # a page's calls of this long are part of its load
LOOK_BACK: Final = PAUSE + LOAD  # what comes before a range and matters
NEVER: Final = -(2**62)
ALWAYS: Final = 2**62

# Whose an address was, as its own spans tell: a new entry where they change, whatever order they arrive in. Of {0}, a
# table of spans, those that {1} are looked at.
SIGHTINGS: Final = """
    SELECT address, node_id, node, login, full_name, tags, caller, identity_source, start_ns, until_ns
    FROM (SELECT *, lead(start_ns) OVER (PARTITION BY address ORDER BY start_ns, trace_id, span_id) AS until_ns
          FROM (SELECT * FROM {0}
                WHERE {1} AND address IS NOT NULL AND node_id IS NOT NULL
                  AND node IS NOT NULL AND source = 'live' AND caller IN ('person', 'tagged', 'shared')
                WINDOW turn AS (PARTITION BY address ORDER BY start_ns, trace_id, span_id)
                QUALIFY lag(address) OVER turn IS NULL
                     OR (node_id, node, login, tags) IS DISTINCT FROM lag((node_id, node, login, tags)) OVER turn))
    WHERE until_ns IS DISTINCT FROM start_ns"""

# Device.turn, of one address
TURN: Final = "from_ns, node_id, node, coalesce(login, ''), coalesce(full_name, ''), coalesce(tags, ''), kind, source"

# Whom a log's line names is a claim, which counts where its service's log is trusted in that. Elsewhere it names
# nobody, and who came from the proxy's own machine is a program. A user whose password nobody looked at is a claim.
STATED: Final = f"""
    stated AS (
        SELECT * REPLACE (
            CASE WHEN claimed THEN claim END AS claim,
            CASE WHEN believed THEN claim ELSE login END AS login,
            CASE WHEN believed THEN 'person' ELSE caller END AS caller,
            CASE WHEN claimed AND NOT believed THEN 'none' ELSE identity_source END AS identity_source,
            CASE WHEN claimed AND NOT believed AND caller = 'local' AND traffic <> 'agent' THEN 'internal'
                 ELSE traffic END AS traffic)
        FROM (SELECT *, source = 'log' AND login IS NULL
                        AND identity_source IN ('serve_header', 'nginx_auth') AS claimed,
                     claimed AND list_contains($trusted_logs, service || chr(9) || identity_source)
                     AND (identity_source <> 'nginx_auth' OR coalesce(status, 0) IN {ADMITTED})
                     AS believed FROM about))"""

# address → whose it was, for all times: entries as they are, and what lies before, between and after them
STRETCHES: Final = f"""
    entry AS (
        SELECT *, lead(from_ns, 1, {ALWAYS}) OVER (PARTITION BY address ORDER BY {TURN}) AS next_ns FROM device),
    stretch AS (
        SELECT address, from_ns, least(coalesce(to_ns, {ALWAYS}), next_ns) AS until_ns,
               node_id, node, login, full_name, tags, kind, source
        FROM entry
        UNION ALL BY NAME SELECT address, to_ns AS from_ns, next_ns AS until_ns FROM entry WHERE to_ns < next_ns
        UNION ALL BY NAME
        SELECT address, {NEVER}::BIGINT AS from_ns, min(from_ns) AS until_ns FROM entry GROUP BY address),
    present AS (SELECT node_id, arg_max(node, (from_ns, address, node)) AS node FROM device GROUP BY node_id),
    known AS (
        SELECT stated.* EXCLUDE (node_id, node, tags, login, full_name, caller, identity_source, claimed, believed),
               coalesce(stretch.from_ns, {NEVER}) AS from_ns, coalesce(stretch.until_ns, {ALWAYS}) AS until_ns,
               coalesce(stated.node_id, stretch.node_id) AS node_id,
               CASE WHEN stretch.node_id IS NULL THEN stated.node ELSE stretch.node END AS own_node,
               CASE WHEN stretch.node_id IS NULL THEN stated.tags ELSE stretch.tags END AS tags,
               stated.login IS NULL AND stated.caller = 'unknown' AND stretch.node_id IS NOT NULL AS named,
               CASE WHEN named THEN stretch.login ELSE stated.login END AS login,
               CASE WHEN named THEN stretch.full_name ELSE stated.full_name END AS full_name,
               CASE WHEN named THEN stretch.kind ELSE stated.caller END AS caller,
               CASE WHEN named THEN stretch.source ELSE stated.identity_source END AS identity_source
        FROM stated LEFT JOIN stretch ON stated.node_id IS NULL AND stretch.address = stated.address)"""

# `tab`: what page loads are told apart by. `sitting`: the same for sessions. A document names `/files/{path:path}`
# without the converter.
DESCRIBED: Final = """,
    labelled AS (
        SELECT * EXCLUDE (traffic, page, card),
               CASE WHEN caller IN ('person', 'shared') THEN login END AS person,
               CASE WHEN traffic IN ('agent', 'internal') THEN traffic
                    WHEN {checker} THEN 'health'
                    WHEN traffic <> 'api' THEN traffic
                    WHEN (polled AND source = 'log') OR list_contains($polls, route) THEN 'poll' ELSE traffic
                    END AS traffic,
               coalesce($pages_to[list_position($pages, page)], page) AS page,
               coalesce($cards_to[list_position($cards, card)], card) AS card
        FROM (SELECT known.*, coalesce(present.node, own_node) AS node FROM known LEFT JOIN present USING (node_id))),
    documented AS (
        SELECT unnest($documented_services::VARCHAR[]) AS of_service,
               unnest($documented_methods::VARCHAR[]) AS of_method,
               unnest($documented_routes::VARCHAR[]) AS of_route,
               unnest($summaries::VARCHAR[]) AS summary),
    described AS (
        SELECT labelled.*, kind = 'view' AS viewed,
               person IS NOT NULL AND kind = 'request' AND traffic = 'page' AS paged,
               person IS NOT NULL AND kind = 'request' AND traffic = 'api' AS called,
               person IS NOT NULL AND (viewed OR traffic IN ('page', 'api')) AS active,
               CASE WHEN person IS NOT NULL AND kind = 'request' AND page IS NOT NULL
                    AND traffic IN ('page', 'api', 'poll') THEN dense_rank() OVER (
                    ORDER BY person, service, environment, coalesce(address, client_address), page) END AS tab,
               CASE WHEN called THEN tab END AS calling_tab,
               CASE WHEN person IS NOT NULL THEN dense_rank() OVER (ORDER BY person, service, environment) END
                   AS sitting,
               coalesce($card_features_to[list_position($card_features, card)],
                        CASE WHEN NOT viewed THEN $route_features_to[list_position($route_features, route)] END,
                        $page_features_to[list_position($page_features, page)],
                        CASE WHEN viewed THEN card ELSE coalesce(summary, route) END) AS feature
        FROM labelled LEFT JOIN documented ON of_service = service AND of_method = method
             AND of_route = regexp_replace(route, '[{{](\\w+):\\w+[}}]', '{{\\1}}', 'g'))"""

JOINED: Final = "request JOIN {0} ON request.number = {0}.number AND start_ns >= from_ns AND start_ns < until_ns"
DESCRIBED_REQUEST: Final = JOINED.format("described")

# A chain is a page's calls without a pause. Its start counts as the page's load unless the page was seen to load in the
# 30 minutes before a call. Stretches that meet are made one, so that a call meets at most one.
LOADS: Final = f"""
    loading AS (
        SELECT tab, start_ns FROM {DESCRIBED_REQUEST}
        WHERE paged AND tab IS NOT NULL AND start_ns >= $early AND start_ns < $end),
    calling AS (
        SELECT tab, start_ns // {PAUSE} AS slot, min(start_ns) AS first_ns, max(start_ns) AS last_ns
        FROM {DESCRIBED_REQUEST} WHERE tab IS NOT NULL AND NOT paged AND start_ns >= $early AND start_ns < $end
        GROUP BY tab, slot),
    chain AS (
        SELECT tab, first_ns AS start_ns FROM calling
        QUALIFY coalesce(first_ns - lag(last_ns) OVER (PARTITION BY tab ORDER BY slot) >= {PAUSE}, true)),
    load AS (
        SELECT tab, start_ns AS since_ns, start_ns + {LOAD} AS till_ns FROM loading
        UNION ALL
        SELECT tab, greatest(start_ns, loaded_ns + {PAUSE}), start_ns + {LOAD}
        FROM (SELECT *, max(seen_ns) OVER (
                  PARTITION BY tab ORDER BY start_ns, calls ROWS UNBOUNDED PRECEDING) AS loaded_ns
              FROM (SELECT tab, start_ns, start_ns AS seen_ns, false AS calls FROM loading
                    UNION ALL SELECT tab, start_ns, {NEVER}, true FROM chain))
        WHERE calls AND loaded_ns + {PAUSE} <= start_ns + {LOAD}),
    merged AS (
        SELECT tab, min(since_ns) AS since_ns, max(till_ns) AS till_ns
        FROM (SELECT *, sum(apart::INTEGER) OVER (PARTITION BY tab ORDER BY since_ns, till_ns) AS island
              FROM (SELECT *, coalesce(since_ns > max(till_ns) OVER (PARTITION BY tab ORDER BY since_ns, till_ns
                        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), true) AS apart FROM load))
        GROUP BY tab, island),
    part AS (
        SELECT tab AS loaded, since_ns, till_ns,
               unnest(range(since_ns // {LOAD}, till_ns // {LOAD} + 1)) AS slot FROM merged)"""
IN_LOAD: Final = (
    f" LEFT JOIN part ON calling_tab = loaded AND start_ns // {LOAD} = slot AND start_ns BETWEEN since_ns AND till_ns"
)

# of {ever}: a table with each person's first request there ever was
FIRSTS: Final = f"""
    debut AS (SELECT person, min(start_ns) AS first_ns
              FROM {DESCRIBED_REQUEST.replace("request", "{ever}")} WHERE active GROUP BY person)"""

SESSIONS: Final = f"""
    present_slot AS (
        SELECT sitting, start_ns // {PAUSE} AS slot, min(start_ns) AS first_ns, max(start_ns) AS last_ns,
               count(*) AS activities{{pages}}
        FROM {JOINED.format("chosen")} WHERE active AND start_ns >= $early AND start_ns < $end GROUP BY sitting, slot),
    counted AS (
        SELECT *, sum(fresh::INTEGER) OVER (PARTITION BY sitting ORDER BY slot) AS turn
        FROM (SELECT *, coalesce(first_ns - lag(last_ns) OVER (PARTITION BY sitting ORDER BY slot) >= {PAUSE}, true)
                  AS fresh FROM present_slot)),
    session AS (
        SELECT sitting, min(first_ns) AS start_ns, max(last_ns) AS end_ns, sum(activities)::BIGINT AS activities{{ends}}
        FROM counted GROUP BY sitting, turn HAVING min(first_ns) >= $start),
    sitter AS (SELECT DISTINCT sitting, person, service, environment FROM described WHERE sitting IS NOT NULL)"""
# the page at an end of a session; of several at one instant the one of the smaller (larger) ids
PAGES: Final = """,
               min((start_ns, trace_id, span_id, page)) FILTER (page IS NOT NULL) AS first_page,
               max((start_ns, trace_id, span_id, page)) FILTER (page IS NOT NULL) AS last_page"""
ENDS: Final = ", min(first_page) AS first_page, max(last_page) AS last_page"


class Described:
    """DESCRIBED_TABLE: what `about` means by some labels, made anew when either changed."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._making = threading.Lock()
        self._made: tuple[int, Labels] | None = None
        connection.execute("ATTACH ':memory:' AS meaning")

    def show(self, cursor: duckdb.DuckDBPyConnection, version: int, labels: Labels) -> None:
        """Lets the cursor see it; `version` counts what was committed to `about` and `device`.

        The cursor's transaction, which is to have begun, keeps it as it is now, whoever makes it anew after that.
        """
        with self._making:
            if self._made != (version, labels):
                with self._connection.cursor() as making:
                    making.execute(*describing(DESCRIBED_TABLE, labels))
                self._made = version, labels
            cursor.execute(f"SELECT 1 FROM {DESCRIBED_TABLE} LIMIT 0")


def describing(table: str, labels: Labels) -> tuple[str, dict[str, Any]]:
    """What makes `table`: all rows of `about` as these labels and the history of devices have them."""
    checkers, values = _checkers(labels.checkers)
    values |= {
        "polls": list(labels.polls),
        "trusted_logs": ["\t".join(trusted) for trusted in labels.trusted_logs.items()],
        "documented_services": [service for service, _, _ in labels.summaries],
        "documented_methods": [method for _, method, _ in labels.summaries],
        "documented_routes": [route for _, _, route in labels.summaries],
        "summaries": list(labels.summaries.values()),
        **_table("pages", labels),
        **_table("cards", labels),
        **_table("card_features", labels),
        **_table("route_features", labels),
        **_table("page_features", labels),
    }
    return (
        f"CREATE OR REPLACE TABLE {table} AS "
        f"WITH {STATED}, {STRETCHES}{DESCRIBED.format(checker=checkers)} FROM described",
        values,
    )


def _table(name: str, labels: Labels) -> dict[str, list[str]]:
    table: dict[str, str] = getattr(labels, name)
    return {name: list(table), f"{name}_to": list(table.values())}


CHECKS: Final = {
    "address": "(coalesce(address = {0}, false) OR coalesce(client_address = {0}, false))",
    "node": "(coalesce(node_id = {0}, false) OR coalesce(node = {0}, false))",
    "login": "coalesce(login = {0}, false)",
    "user_agent": "coalesce(contains(user_agent, {0}), false)",
    "tailnet_address": "coalesce(address = {0}, false)",
    "source": "source = {0}",
}


def _checkers(checkers: tuple[Checker, ...]) -> tuple[str, dict[str, Any]]:
    """A condition that holds for each request of a declared checker, and its values."""
    values: dict[str, Any] = {}
    conditions = ["false"]
    for number, checker in enumerate(checkers):
        given = {name: getattr(checker, name) for name in CHECKS if getattr(checker, name) is not None}
        conditions.append(" AND ".join(CHECKS[name].format(f"$checker{number}_{name}") for name in given))
        values |= {f"checker{number}_{name}": value for name, value in given.items()}
    return f"({' OR '.join(conditions)})", values
