"""The sentences of answers, in the languages that the settings may name."""

from typing import Final, Literal, get_args

Language = Literal["en", "es"]
LANGUAGES: Final[tuple[Language, ...]] = get_args(Language)

ENGLISH: Final = {
    "active": "{count} active: {who}.",
    "nobody": "Nobody in the last 5 minutes.",
    "on": "on",
    "more": "and {count} more",
    "uses": "{feature} ({count:access|accesses})",
    "usage": "Last {days:day|days}: {sessions:session|sessions} of {people:person|people}.",
    "unused": "Nobody used it in the last {days:day|days}.",
    "most_used": "Most used: {features}.",
    "most_active": "Most active: {who}, {sessions:session|sessions}.",
    "up": "{share} up in 7 days.",
    "up_unknown": "Uptime unknown: no heartbeats.",
    "mean": "{ms} on average.",
    "no_calls": "No calls of people.",
    "errors": "{share} errors.",
    "slow": "Slowest: {endpoint}, p95 {p95}{usual}, {calls:call|calls}{who}.",
    "usual": " (usually {p95})",
    "row": "{values} ({start} to {end}).",
    "rows": "{count:row|rows}{more}, {start} to {end}.",
    "empty": "Nothing found, {start} to {end}.",
    "devices": "{count:device|devices}, {online} online.",
    "device": "{name}, {owner}, {seen}.",
    "online": "online",
    "seen": "last seen {at}",
    "unknown": "nobody that is known.",
}
SPANISH: Final = {
    "active": "{count:activo|activos}: {who}.",
    "nobody": "Nadie en los últimos 5 minutos.",
    "on": "en",
    "more": "y {count} más",
    "uses": "{feature} ({count:acceso|accesos})",
    "usage": "Últimos {days:día|días}: {sessions:sesión|sesiones} de {people:persona|personas}.",
    "unused": "Nadie lo ha usado en los últimos {days:día|días}.",
    "most_used": "Lo más usado: {features}.",
    "most_active": "Quien más: {who}, {sessions:sesión|sesiones}.",
    "up": "Disponible el {share} en 7 días.",
    "up_unknown": "Disponibilidad desconocida: no hay latidos.",
    "mean": "{ms} de media.",
    "no_calls": "Ninguna llamada de personas.",
    "errors": "{share} de errores.",
    "slow": "Lo más lento: {endpoint}, p95 {p95}{usual}, {calls:llamada|llamadas}{who}.",
    "usual": " (normalmente {p95})",
    "row": "{values} (de {start} a {end}).",
    "rows": "{count:fila|filas}{more}, de {start} a {end}.",
    "empty": "Nada encontrado, de {start} a {end}.",
    "devices": "{count:dispositivo|dispositivos}, {online} en línea.",
    "device": "{name}, {owner}, {seen}.",
    "online": "en línea",
    "seen": "visto por última vez {at}",
    "unknown": "nadie conocido.",
}
WORDS: Final[dict[Language, dict[str, str]]] = {"en": ENGLISH, "es": SPANISH}


class Count(int):
    """A number that brings its noun: `{count:row|rows}`."""

    def __format__(self, nouns: str) -> str:
        one, _, many = nouns.partition("|")
        return f"{int(self)} {one if self == 1 else many}" if nouns else str(int(self))


class Words:
    """`words("nobody")`, and lists that end in how many more there are."""

    def __init__(self, language: Language) -> None:
        self._texts = WORDS[language]

    def __call__(self, sentence: str, **values: object) -> str:
        counted = {key: Count(value) if isinstance(value, int) else value for key, value in values.items()}
        return self._texts[sentence].format(**counted)

    def first(self, entries: list[str], count: int, total: int | None = None) -> str:
        """The first `count` with commas between, and how many more of `total` there are."""
        more = (len(entries) if total is None else total) - min(count, len(entries))
        return ", ".join(entries[:count]) + (f" {self('more', count=more)}" if more else "")

    def number(self, text: str) -> str:
        """As it is written in the language: 99.8% is 99,8 % in Spanish."""
        return text if self._texts is ENGLISH else text.replace(".", ",").replace("%", " %")
