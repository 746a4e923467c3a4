// The card: who uses the service, how much, and who is there now. A custom element; docs/card.md tells its attributes.
//
// render(answer, …) is pure: an answer in, the card's pieces as HTML out, every value in it escaped.

const HERE = new URL(import.meta.url);
const ACTIVE_EVERY_MS = 1_000; // who opens the page on a phone is on the card within three seconds, by a wide margin
const ALL_EVERY_MS = 60_000;
const AGAIN_MS = 10_000; // after a question that failed, or an answer that had nothing yet
const TIMEOUT_MS = 15_000;
const FEATURES = 5;
const ACTIVE = 8;

const WORDS = {
  en: {
    title: (days) => (days === 7 ? "Analytics, last week" : `Analytics, last ${days} days`),
    sessions: "Sessions",
    users: "Unique users",
    accesses: "Accesses",
    byDay: "Accesses by day",
    day: "Day",
    features: "Most used",
    now: "Active now",
    nobody: "Nobody in the last five minutes.",
    unused: "Nothing was used yet.",
    more: (count) => `and ${count} more`,
    others: (count) => `${count} active`,
    loading: "Loading…",
    empty: "No data yet: tailspan has not received a request so far.",
    missing: "This is incomplete:",
    away: (age) => `The server does not answer. Last answer: ${age}.`,
    gone: "The server does not answer.",
    refused: "You may not see this.",
    moment: "just now",
    ago: (count, unit) => `${count} ${{ min: "min", h: "h", day: count === 1 ? "day" : "days" }[unit]} ago`,
  },
  es: {
    title: (days) => (days === 7 ? "Analytics Última Semana" : `Analytics, últimos ${days} días`),
    sessions: "Sesiones",
    users: "Usuarios únicos",
    accesses: "Accesos",
    byDay: "Accesos por día",
    day: "Día",
    features: "Lo más usado",
    now: "Activos ahora",
    nobody: "Nadie en los últimos cinco minutos.",
    unused: "Todavía no se ha usado nada.",
    more: (count) => `y ${count} más`,
    others: (count) => (count === 1 ? "1 activo" : `${count} activos`),
    loading: "Cargando…",
    empty: "Aún no hay datos: tailspan no ha recibido ninguna petición.",
    missing: "Esto está incompleto:",
    away: (age) => `El servidor no responde. Última respuesta: ${age}.`,
    gone: "El servidor no responde.",
    refused: "No tienes permiso para ver esto.",
    moment: "ahora mismo",
    ago: (count, unit) => `hace ${count} ${{ min: "min", h: "h", day: count === 1 ? "día" : "días" }[unit]}`,
  },
};

const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };

class Html {
  constructor(text) {
    this.text = text;
  }
}

/** A template tag: what is filled in is text, unless it was made by this tag; of a list, all of it. */
export function html(strings, ...values) {
  return new Html(strings.map((string, index) => string + (index < values.length ? markup(values[index]) : "")).join(""));
}

function markup(value) {
  if (Array.isArray(value)) return value.map(markup).join("");
  if (value instanceof Html) return value.text;
  return value == null || value === false ? "" : String(value).replace(/[&<>"']/g, (character) => ESCAPES[character]);
}

/** The language of the card: what is asked for, else the page's; English where that is neither. */
export const language = (...wishes) => wishes.map((wish) => (wish ?? "").slice(0, 2).toLowerCase()).find((wish) => wish in WORDS) ?? "en";

/** "2 min ago", as the server says it, in the card's language. */
export function ago(milliseconds, lang) {
  const words = WORDS[lang];
  for (const [unit, size] of [["day", 86_400_000], ["h", 3_600_000], ["min", 60_000]]) {
    if (milliseconds >= size) return words.ago(Math.floor(milliseconds / size), unit);
  }
  return words.moment;
}

/**
 * The pieces of the card: {state, status, numbers, days, features, active}, HTML each, but `days`: [{day, accesses}].
 *
 * `answer` is what /analytics/dashboard-usage or /analytics/totals says, or null; `problem` is what the server said
 * instead, {kind: "away" | "refused" | "broken", message, at}. `now` is the server's clock in ms.
 */
export function render(answer, { lang = "en", now = 0, problem = null, names = true, days = 7 } = {}) {
  const words = WORDS[lang];
  const number = new Intl.NumberFormat(lang);
  const sources = answer?.sources ?? [];
  const troubled = sources.filter(({ state }) => state !== "ok" && state !== "no data yet");
  const empty = sources.some(({ state }) => state === "no data yet");
  const state = problem ? problem.kind : !answer ? "loading" : troubled.length ? "missing" : empty ? "empty" : "ok";
  const summary = answer?.summary;
  const list = (entries, otherwise) => (entries.length ? html`<ol>${entries}</ol>` : html`<p>${otherwise}</p>`);
  const users = names ? (answer?.active_users ?? null) : null;
  const figures = [
    [words.sessions, summary?.total_sessions],
    [words.users, summary?.unique_users],
    [words.accesses, summary?.total_accesses],
  ];
  return {
    state,
    title: words.title(summary?.period_days ?? days),
    status: told(state, { words, problem, troubled, lang, now }).text,
    numbers: html`${figures.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value == null ? "–" : number.format(value)}</dd></div>`)}`.text,
    days: answer?.accesses_by_day ?? [],
    table: table(answer?.accesses_by_day ?? [], words, number, lang).text,
    features: html`<h3>${words.features}</h3>${list(
      (answer?.top_features ?? []).slice(0, FEATURES).map(({ feature, uses }) => html`<li><span>${feature}</span> <b>${number.format(uses)}</b></li>`),
      answer ? words.unused : "",
    )}`.text,
    active: html`<h3>${words.now}${answer && html` <b>${number.format(answer.total_active)}</b>`}</h3>${
      users
        ? list(users.slice(0, ACTIVE).map((user) => person(user, now, lang)), words.nobody)
        : html`<p>${answer && (answer.total_active ? words.others(answer.total_active) : words.nobody)}</p>`
    }${users && users.length > ACTIVE ? html`<p>${words.more(users.length - ACTIVE)}</p>` : ""}`.text,
  };
}

function person(user, now, lang) {
  const place = [user.device, user.current_page].filter(Boolean).join(" · ");
  return html`<li><span title="${user.email}">${user.full_name || user.email}</span> <small>${place}</small>
    <time datetime="${user.last_seen_at}">${ago(now - Date.parse(user.last_seen_at), lang)}</time></li>`;
}

function table(days, words, number, lang) {
  const rows = days.map(({ day, accesses }) => html`<tr><th scope="row">${dayName(day, lang)}</th><td>${number.format(accesses)}</td></tr>`);
  return html`<thead><tr><th scope="col">${words.day}</th><th scope="col">${words.accesses}</th></tr></thead><tbody>${rows}</tbody>`;
}

/** "Mon 3" of "2025-10-06"; the date is the server's, in whatever zone that has. */
export function dayName(day, lang) {
  return new Intl.DateTimeFormat(lang, { weekday: "short", day: "numeric", timeZone: "UTC" }).format(new Date(`${day}T00:00Z`));
}

function told(state, { words, problem, troubled, lang, now }) {
  const note = (text, more = "") => html`<p class="note">${text} ${more}</p>`;
  if (state === "away") return note(problem.at == null ? words.gone : words.away(ago(now - problem.at, lang)));
  if (state === "refused") return note(words.refused, problem.message);
  if (state === "broken") return note(words.missing, problem.message);
  if (state === "missing") return note(words.missing, troubled.map(({ name, message }) => html`<br>${name}: ${message}`));
  if (state === "empty") return note(words.empty);
  return state === "loading" ? note(words.loading) : html``;
}

const STYLE = `
:host { --back: #fff; --text: #1f2937; --quiet: #4b5563; --line: #d1d5db; --bar: #2563eb; --note: #fef3c7; --noted: #713f12;
  display: block; container-type: inline-size; color: var(--text); color-scheme: light; font: 1rem/1.45 system-ui, sans-serif; }
:host([hidden]) { display: none; }
:host([theme="dark"]) { --back: #1f2937; --text: #f3f4f6; --quiet: #cbd5e1; --line: #4b5563; --bar: #60a5fa; --note: #422006; --noted: #fde68a; color-scheme: dark; }
@media (prefers-color-scheme: dark) { :host(:not([theme])), :host([theme="auto"]) { --back: #1f2937; --text: #f3f4f6; --quiet: #cbd5e1; --line: #4b5563; --bar: #60a5fa; --note: #422006; --noted: #fde68a; color-scheme: dark; } }
:host([theme="host"]) { --back: transparent; --text: inherit; --quiet: inherit; --line: currentColor; --bar: currentColor; --note: transparent; --noted: inherit; font: inherit; color-scheme: inherit; }
section { box-sizing: border-box; padding: 1.25rem; background: var(--back); border: 1px solid var(--line); border-radius: 12px; overflow-wrap: anywhere; }
h2, h3, p, dl, dd, ol { margin: 0; padding: 0; }
h2 { font-size: 1.125rem; } h3 { font-size: .875rem; margin-bottom: .25rem; }
#status { position: absolute; inset: 0 0 auto; max-height: 100%; overflow: auto; }
.note { margin: 0; padding: .5rem .75rem; border: 1px solid var(--line); border-radius: 8px; background: var(--note); color: var(--noted); font-size: .875rem; }
dl { display: grid; grid-template-columns: repeat(3, 1fr); gap: .75rem; margin: 1rem 0; }
dl div { display: flex; flex-direction: column-reverse; justify-content: flex-end; }
dt { color: var(--quiet); font-size: .8125rem; } dd { font-size: 1.75rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.chart { position: relative; height: 11rem; }
canvas { display: block; width: 100%; height: 100%; }
summary { cursor: pointer; color: var(--quiet); font-size: .8125rem; padding: .25rem 0; }
table { width: 100%; border-collapse: collapse; font-size: .875rem; }
th { text-align: start; font-weight: 400; } td, th:last-child { text-align: end; font-variant-numeric: tabular-nums; }
td, th { border-top: 1px solid var(--line); padding: .2rem 0; }
.lists { display: grid; grid-template-columns: 1fr 1fr; gap: 1.25rem; margin-top: 1rem; }
#features, #active { height: 10rem; overflow: auto; }
ol { list-style: none; font-size: .875rem; } li { display: flex; flex-wrap: wrap; gap: 0 .5rem; padding: .2rem 0; }
li b, li time { margin-inline-start: auto; } small, time, .lists p { color: var(--quiet); font-size: .8125rem; }
@container (max-width: 30rem) { .lists { grid-template-columns: 1fr; } dd { font-size: 1.375rem; } section { padding: 1rem; } }`;

const FRAME = `<section aria-labelledby="title"><h2><span aria-hidden="true">📊</span> <span id="title"></span></h2>
<dl id="numbers"></dl><div class="chart"><canvas role="img"></canvas><div id="status" role="status"></div></div>
<details><summary></summary><table id="table"></table></details>
<div class="lists"><div id="features" tabindex="0"></div><div id="active" tabindex="0"></div></div></section>`;

class AnalyticsWidget extends (globalThis.HTMLElement ?? Object) {
  static observedAttributes = ["server", "days", "language", "service", "theme", "names", "refused"];

  #answer = null; // the last one
  #problem = null;
  #at = 0; // when it came, by our clock
  #skew = 0; // how far the server's clock is ahead of ours
  #timer = 0;
  #due = 0; // when the next question is due
  #dueAll = 0; // and when everything is asked for again
  #refused = false; // names are; totals are asked for instead
  #asking = null; // AbortController of the request that is on its way
  #chart = null;
  #drawn = {};
  #seen = null; // IntersectionObserver
  #inView = true;

  connectedCallback() {
    if (!this.shadowRoot) {
      const root = this.attachShadow({ mode: "open" });
      const style = new CSSStyleSheet(); // a <style> would need a hole in the host's Content-Security-Policy
      style.replaceSync(STYLE);
      root.adoptedStyleSheets = [style];
      root.innerHTML = FRAME;
    }
    document.addEventListener("visibilitychange", this);
    this.#seen = new IntersectionObserver(([entry]) => {
      this.#inView = entry.isIntersecting;
      this.#schedule();
    }, { rootMargin: "50%" });
    this.#seen.observe(this);
    this.#again();
  }

  disconnectedCallback() {
    document.removeEventListener("visibilitychange", this);
    this.#seen.disconnect();
    this.#stop();
    this.#chart?.destroy();
    this.#chart = null;
    this.#drawn = {};
  }

  attributeChangedCallback() {
    if (this.isConnected && this.shadowRoot) this.#again();
  }

  handleEvent() {
    this.#schedule();
  }

  /** Asks anew, for everything. */
  #again() {
    this.#stop();
    this.#answer = null;
    this.#problem = null;
    this.#refused = false;
    this.#due = this.#dueAll = 0;
    this.#draw();
    this.#schedule();
  }

  #stop() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#asking?.abort();
    this.#asking = null;
  }

  get #isLooked() {
    return document.visibilityState === "visible" && this.#inView && this.isConnected;
  }

  #schedule() {
    clearTimeout(this.#timer);
    if (!this.#asking && this.#isLooked) this.#timer = setTimeout(() => this.#ask(), Math.max(0, this.#due - Date.now()));
  }

  get #named() {
    return this.getAttribute("names") !== "hidden" && !this.#refused;
  }

  get #server() {
    return new URL(this.getAttribute("server") || new URL("../../../", HERE), location.href).href.replace(/\/?$/, "/");
  }

  async #ask() {
    const all = Date.now() >= this.#dueAll || !this.#answer || Boolean(this.#problem);
    const what = !this.#named ? "totals" : all ? "dashboard-usage" : "refresh";
    const url = new URL(what, this.#server);
    if (this.hasAttribute("service")) url.searchParams.set("service", this.getAttribute("service"));
    if (what !== "refresh") url.searchParams.set("days", this.#days);
    const asking = (this.#asking = new AbortController());
    const timeout = setTimeout(() => asking.abort(), TIMEOUT_MS);
    try {
      const response = await fetch(url, { signal: asking.signal, headers: { Accept: "application/json" } });
      const body = await response.json();
      if (this.#asking !== asking) return; // another question took its place
      this.#take(response, body, what);
    } catch {
      if (this.#asking !== asking) return;
      this.#fail("away");
    } finally {
      clearTimeout(timeout);
      if (this.#asking === asking) {
        this.#asking = null;
        this.#draw();
        this.#schedule();
      }
    }
  }

  #take(response, body, what) {
    const message = [body.error?.message, body.error?.fix].filter(Boolean).join(" ");
    if (response.ok) {
      this.#answered(body, what);
    } else if (response.status === 403 && this.#named && this.getAttribute("refused") === "totals") {
      this.#refused = true;
      this.#due = this.#dueAll = 0;
    } else if (response.status === 401 || response.status === 403) {
      this.#answer = null;
      this.#fail("refused", message);
    } else {
      this.#fail(message ? "broken" : "away", message);
    }
  }

  #answered(body, what) {
    this.#problem = null;
    this.#at = Date.now();
    this.#skew = Date.parse(body.end) - this.#at;
    const { active_users, total_active, sources } = body;
    this.#answer = what === "refresh" ? { ...this.#answer, active_users, total_active, sources } : body;
    const isEmpty = sources.some(({ state }) => state === "no data yet");
    if (what !== "refresh") this.#dueAll = this.#at + (isEmpty ? AGAIN_MS : ALL_EVERY_MS);
    this.#due = this.#named ? this.#at + ACTIVE_EVERY_MS : this.#dueAll;
  }

  #fail(kind, message = "") {
    this.#problem = { kind, message, at: this.#answer && this.#at + this.#skew };
    this.#due = Date.now() + AGAIN_MS;
  }

  get #days() {
    return Math.min(30, Math.max(1, parseInt(this.getAttribute("days"), 10) || 7));
  }

  #draw() {
    const lang = language(this.getAttribute("language"), document.documentElement.lang);
    const options = { lang, now: Date.now() + this.#skew, problem: this.#problem, names: this.#named, days: this.#days };
    const { state, title, days, ...pieces } = render(this.#answer, options);
    const at = (id) => this.shadowRoot.getElementById(id);
    this.hidden = state === "refused" && this.getAttribute("refused") === "hide";
    this.dataset.state = state;
    this.lang = lang;
    at("title").textContent = title;
    this.shadowRoot.querySelector("summary").textContent = WORDS[lang].byDay;
    for (const [id, markup] of Object.entries(pieces)) {
      if (this.#drawn[id] !== markup) at(id).innerHTML = this.#drawn[id] = markup; // what is the same keeps focus and place
    }
    at("status").tabIndex = pieces.status ? 0 : -1; // it may be more than there is room for
    this.#plot(days, lang);
  }

  async #plot(days, lang) {
    const canvas = this.shadowRoot.querySelector("canvas");
    const labels = days.map(({ day }) => dayName(day, lang));
    const values = days.map(({ accesses }) => accesses);
    const shown = JSON.stringify([labels, values]);
    canvas.setAttribute("aria-label", `${WORDS[lang].byDay}: ${labels.map((label, index) => `${label} ${values[index]}`).join(", ")}`);
    if (!days.length || this.#drawn.chart === shown) return;
    this.#drawn.chart = shown;
    try {
      const { default: Chart } = await import("../vendor/chart.js");
      if (!this.isConnected || this.#drawn.chart !== shown) return;
      this.#chart?.destroy();
      this.#chart = new Chart(canvas, chart(labels, values, getComputedStyle(this.shadowRoot.querySelector(".chart")), getComputedStyle(this)));
    } catch {
      this.#drawn.chart = null; // the table has the same, and the next answer tries again
      this.shadowRoot.querySelector("details").open = true;
    }
  }
}

function chart(labels, values, { color }, style) {
  const of = (name) => (style.getPropertyValue(name).trim().match(/^(inherit|currentColor)$/i) ? color : style.getPropertyValue(name).trim());
  const ticks = { color: of("--quiet"), maxRotation: 0 };
  return {
    type: "bar",
    data: { labels, datasets: [{ data: values, backgroundColor: of("--bar"), borderRadius: 4, maxBarThickness: 48 }] },
    options: {
      animation: false,
      responsive: true,
      maintainAspectRatio: false,
      plugins: { legend: { display: false } },
      scales: { x: { grid: { display: false }, ticks }, y: { beginAtZero: true, ticks: { ...ticks, precision: 0 }, grid: { color: of("--line") } } },
    },
  };
}

/** One script tag is enough: without an element of its own, the page gets one where the tag says, or stands. */
function place() {
  const name = "analytics-widget";
  const tag = [...document.querySelectorAll("script[src]")].find(({ src }) => src.split(/[?#]/)[0] === HERE.href.split(/[?#]/)[0]);
  if (!tag || document.querySelector(name)) return;
  const card = document.createElement(name);
  for (const attribute of AnalyticsWidget.observedAttributes) {
    if (tag.dataset[attribute]) card.setAttribute(attribute, tag.dataset[attribute]);
  }
  const target = tag.dataset.target && document.querySelector(tag.dataset.target);
  if (target) target.append(card);
  else if (document.body.contains(tag)) tag.after(card);
  else (document.querySelector("main") ?? document.body).append(card);
}

if (globalThis.customElements && !customElements.get("analytics-widget")) {
  customElements.define("analytics-widget", AnalyticsWidget);
  place();
}
