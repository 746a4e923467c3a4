// The page's own words, in its two languages.

export const WORDS = {
  en: {
    from: "From", to: "until before", show: "Show", now: "Now", accesses: "Accesses", people: "People", features: "Features", routes: "Routes",
    cards: "Cards", idle: "Online, but not using", sources: "Sources", requests: "Requests", hours24: "24 h", days7: "7 d", days30: "30 d",
    custom: "Custom", name: "Name", device: "Device", devices: "Devices", page: "Page", seen: "Last seen", sessions: "Sessions", time: "Time",
    uses: "Uses", feature: "Feature", route: "Route", calls: "Requests", errors: "Errors", card: "Card", variant: "Variant", views: "Views",
    looked: "Looked at", service: "Service", heartbeat: "Last heartbeat", lost: "Spans lost", forged: "Forged", state: "State", login: "Owner",
    when: "When", who: "Who", status: "Status", ms: "ms", what: "What", nothing: "Nothing.", unknown: "not known", all: "All requests of this time",
    stopped: "stopped", message: "Message", period: "Period", language: "Language", more: (count) => `and ${count} more`, more_rows: "More", failed: "This cannot be shown:", loading: "Loading…",
    table: "As a table", day: "Day", hour: "Hour", coverage: "Coverage by the proxy's log", proxied: "Seen by its proxy", told: "Told by itself",
    share: "Share", untold: "In the log alone", gaps: "Told nothing", none: "never", well: "Every source is well.", unproven: "Not proven",
    unlogged: "No log of a proxy is read, so nothing is known of what services did not tell.",
    of_hours: (hours) => `Of the last ${hours} hours.`, of_days: (days) => `Of the last ${days} days.`,
  },
  es: {
    from: "Desde", to: "hasta antes de", show: "Mostrar", now: "Ahora", accesses: "Accesos", people: "Personas", features: "Funciones", routes: "Rutas",
    cards: "Tarjetas", idle: "Conectados, sin usarlo", sources: "Fuentes", requests: "Peticiones", hours24: "24 h", days7: "7 d", days30: "30 d",
    custom: "Otro", name: "Nombre", device: "Dispositivo", devices: "Dispositivos", page: "Página", seen: "Última vez", sessions: "Sesiones", time: "Tiempo",
    uses: "Usos", feature: "Función", route: "Ruta", calls: "Peticiones", errors: "Errores", card: "Tarjeta", variant: "Variante", views: "Vistas",
    looked: "Tiempo a la vista", service: "Servicio", heartbeat: "Último latido", lost: "Spans perdidos", forged: "Falsificados", state: "Estado", login: "Dueño",
    when: "Cuándo", who: "Quién", status: "Código", ms: "ms", what: "Qué", nothing: "Nada.", unknown: "no se sabe", all: "Todas las peticiones de este tiempo",
    stopped: "parado", message: "Mensaje", period: "Periodo", language: "Idioma", more: (count) => `y ${count} más`, more_rows: "Más", failed: "Esto no se puede mostrar:", loading: "Cargando…",
    table: "Como tabla", day: "Día", hour: "Hora", coverage: "Cobertura según el registro del proxy", proxied: "Vistas por su proxy", told: "Contadas por él",
    share: "Parte", untold: "Solo en el registro", gaps: "No contó nada", none: "nunca", well: "Todas las fuentes están bien.", unproven: "Sin prueba",
    unlogged: "No se lee el registro de ningún proxy: no se sabe qué dejaron de contar los servicios.",
    of_hours: (hours) => `De las últimas ${hours} horas.`, of_days: (days) => `De los últimos ${days} días.`,
  },
};
