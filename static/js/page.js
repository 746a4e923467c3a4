// tailspan's own page: what is asked stands in its address, so that every number is a link to the requests behind it.

import { ago, dayName, html, language } from "./components/analytics-widget.js";
import { WORDS } from "./words.js";

const ANALYTICS = new URL("../../", import.meta.url);
const RANGES = { "24h": ["hours", 24], "7d": ["days", 7], "30d": ["days", 30] };
const FILTERS = ["user", "device", "address", "service", "endpoint", "feature", "page", "card", "variant", "traffic", "caller", "status", "status_class", "kind", "source", "environment"];
const ACTIVE_EVERY_MS = 5_000;
const MOST_HOURS = 168; // that coverage is told of
const PEOPLE = { caller: "person,shared" };
const USED = { ...PEOPLE, traffic: "page,api" };

const given = new URLSearchParams(location.search);
const lang = language(given.get("lang"), navigator.language);
const words = WORDS[lang];
const number = new Intl.NumberFormat(lang, { maximumFractionDigits: 1 });
const percent = new Intl.NumberFormat(lang, { style: "percent", maximumFractionDigits: 1 });
const moment = new Intl.DateTimeFormat(lang, { dateStyle: "medium", timeStyle: "short" });
const filters = Object.fromEntries([...given].filter(([name]) => FILTERS.includes(name)));
const range = chosen();
const at = (id) => document.getElementById(id);

function chosen() {
  if (given.get("start")) return { start: given.get("start"), ...(given.get("end") && { end: given.get("end") }) };
  const [unit, count] = RANGES[given.get("range")] ?? RANGES["7d"];
  return { [unit]: count };
}

/** What the server says; throws an Error with its own words for what is wrong. */
async function ask(path, parameters = {}) {
  const url = new URL(path, ANALYTICS);
  for (const [name, value] of Object.entries(parameters)) url.searchParams.set(name, value);
  const response = await fetch(url, { headers: { Accept: "application/json" } });
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  throw new Error([body.error?.message, body.error?.rule, body.error?.fix].filter(Boolean).join(" ") || `${path}: ${response.status}`);
}

const query = (parameters) => ask("query", { limit: 50, ...range, ...parameters });

/** An address of this page with the range and language it has, and these filters of requests. */
function address(changed = {}, keep = ["range", "start", "end", "lang"]) {
  const kept = keep.flatMap((name) => (given.get(name) ? [[name, given.get(name)]] : []));
  return `?${new URLSearchParams([...kept, ...Object.entries(changed)])}`;
}

const link = (text, which, keep) => html`<a href="${address(which, keep)}#requests">${text}</a>`;
const figure = (value, which, shown = (known) => number.format(known)) => (value == null ? words.unknown : link(shown(value), which));
const milliseconds = (value) => `${number.format(value)} ms`;
const duration = (seconds) => (seconds >= 3600 ? `${number.format(seconds / 3600)} h` : seconds >= 60 ? `${number.format(seconds / 60)} min` : `${number.format(seconds)} s`);
const age = (time, now) => (time ? html`<time datetime="${time}" title="${time}">${ago(now - Date.parse(time), lang)}</time>` : words.unknown);

function table(heads, rows, more = 0) {
  if (!rows.length) return html`<p class="quiet">${words.nothing}</p>`;
  const head = heads.map((name) => html`<th scope="col">${words[name] ?? name}</th>`);
  const body = rows.map(([first, ...cells]) => html`<tr><th scope="row">${first}</th>${cells.map((cell) => html`<td>${cell}</td>`)}</tr>`);
  return html`<div class="scroll" tabindex="0"><table><thead><tr>${head}</tr></thead><tbody>${body}</tbody></table></div>${more > 0 && html`<p class="quiet">${words.more(number.format(more))}</p>`}`;
}

const PARTS = {
  async now() {
    await present();
  },
  async accesses() {
    const by = range.hours ? "hour" : "day";
    const { rows } = await query({ metrics: "accesses", dimensions: by, order: by, limit: 1000 });
    const labels = rows.map((row) => (by === "day" ? dayName(row.day, lang) : row.hour.slice(11, 16)));
    const values = rows.map(({ accesses }) => accesses);
    await plot(labels, values);
    const until = (row) => new Date(Date.parse(row[by]) + (by === "day" ? 86_400_000 : 3_600_000)).toISOString();
    const within = (row) => (by === "day" ? { start: row.day, end: until(row).slice(0, 10) } : { start: row.hour, end: until(row) });
    return table([by, "accesses"], rows.map((row, index) => [labels[index], link(number.format(values[index]), { ...USED, ...within(row) }, ["lang"])]));
  },
  async people() {
    const [visits, seen, used] = await Promise.all([
      query({ metrics: "sessions,session_time_s", dimensions: "person" }),
      query({ metrics: "last_seen,people", dimensions: "person", limit: 1000, ...PEOPLE }),
      query({ metrics: "requests", dimensions: "person,device", limit: 1000, ...PEOPLE }),
    ]);
    const last = new Map(seen.rows.map(({ person, last_seen }) => [person, last_seen]));
    const devices = (login) => used.rows.filter(({ person, device }) => person === login && device);
    const now = Date.parse(visits.question.end);
    return table(["name", "sessions", "time", "devices", "seen"], visits.rows.map(({ person, sessions, session_time_s }) => [
      person,
      figure(sessions, { user: person }),
      figure(session_time_s, { user: person }, duration),
      devices(person).map(({ device, device_name }, index) => html`${index ? ", " : ""}${link(device_name ?? device, { user: person, device })}`),
      age(last.get(person), now),
    ]), visits.more);
  },
  async features() {
    const { rows, more } = await query({ metrics: "deliberate_calls,views,people", dimensions: "feature" });
    const used = rows.filter(({ feature }) => feature !== null).map((row) => ({ ...row, uses: row.deliberate_calls + row.views }));
    return table(["feature", "uses", "views", "people"], used.sort((one, other) => other.uses - one.uses).map(({ feature, uses, views, people }) => [
      feature,
      figure(uses, { feature, kind: "request,view" }),
      figure(views, { feature, kind: "view" }),
      figure(people, { feature, kind: "request,view", ...PEOPLE }),
    ]), more);
  },
  async routes() {
    const { rows, more } = await query({ metrics: "requests,p50_ms,p95_ms,max_ms,errors", dimensions: "endpoint", order: "-p95_ms", ...USED });
    return table(["route", "calls", "p50", "p95", "max", "errors"], rows.map(({ endpoint, requests, p50_ms, p95_ms, max_ms, errors }) => {
      const which = { ...USED, ...(endpoint && { endpoint }) };
      return [
        endpoint ?? words.unknown,
        figure(requests, which),
        ...[p50_ms, p95_ms, max_ms].map((ms) => figure(ms, which, milliseconds)),
        figure(errors, { ...which, status_class: "5xx" }),
      ];
    }), more);
  },
  async cards() {
    const { rows, more } = await query({ metrics: "views,visible_ms,people", dimensions: "card,variant" });
    return table(["card", "variant", "views", "looked", "people"], rows.map(({ card, variant, views, visible_ms, people }) => {
      const which = { kind: "view", ...(card && { card }), ...(variant && { variant }) };
      return [
        card ?? words.unknown,
        variant ?? "",
        figure(views, which),
        figure(visible_ms, which, (ms) => duration(ms / 1000)),
        figure(people, which),
      ];
    }), more);
  },
  async idle() {
    const days = Math.min(30, range.days ?? (range.hours ? 1 : 30));
    const { devices, more } = await ask("tailnet/devices", { online: true, using: false, days });
    return table(["device", "login"], devices.map(({ name, user, tags, id }) => [link(name, { device: id }), user ?? tags.join(", ")]), more.devices ?? 0);
  },
  async coverage() {
    const hours = range.hours ?? Math.min(MOST_HOURS, (range.days ?? 7) * 24);
    const { services } = await ask("coverage", { hours });
    if (!services.length) return html`<p class="quiet">${words.unlogged}</p>`;
    const since = { range: hours > 24 ? "7d" : "24h" };
    const told = table(["service", "proxied", "told", "share", "untold", "gaps"], services.map(({ service, environment, requests, live, share, gaps }) => {
      const of = { service, ...(environment && { environment }) };
      const some = (count, which) => link(number.format(count), { ...since, ...of, ...which }, ["lang"]);
      return [
        environment ? `${service} (${environment})` : service,
        some(requests),
        some(live, { source: "live" }),
        percent.format(share),
        some(requests - live, { source: "log" }),
        gaps.length ? gaps.map((gap) => html`<div>${silence(gap, of)}</div>`) : words.none,
      ];
    }));
    return html`<p class="quiet">${hours > 24 ? words.of_days(hours / 24) : words.of_hours(hours)}</p>${told}`;
  },
  async rows() {
    const answer = await query({ ask: "rows", ...(Object.keys(filters).length ? filters : { "!traffic": "internal" }), ...(given.get("cursor") && { cursor: given.get("cursor") }) });
    const about = Object.entries(filters).map(([name, value]) => `${name} = ${value}`).join(", ") || words.all;
    const shown = table(["when", "who", "device", "what", "status", "ms"], answer.rows.map((row) => [
      html`<time datetime="${row.timestamp}">${new Date(row.timestamp).toLocaleString(lang)}</time>`,
      row.user ? link(row.full_name ?? row.user, { user: row.user }) : (row.tags ?? row.caller),
      row.device ?? row.ip ?? "",
      row.method === "_OTHER" ? row.page : html`${row.method} ${row.endpoint ? link(row.endpoint, { endpoint: row.endpoint }) : row.path}`,
      row.status ?? "",
      row.response_time_ms == null ? "" : number.format(row.response_time_ms),
    ]));
    const next = answer.next_cursor && html`<p><a href="${address({ ...filters, cursor: answer.next_cursor })}#requests">${words.more_rows}</a></p>`;
    return html`<p class="quiet">${about}</p>${shown}${next}`;
  },
  async sources() {}, // present() draws them
};

/** A gap of coverage: from when to when, and the requests of it that only the proxy's log has. */
function silence({ start, end, requests }, of) {
  const [from, to] = [start, end].map((time) => new Date(time));
  return html`${moment.formatRange(from, to)}: ${link(number.format(requests), { start, end, ...of, source: "log" }, ["lang"])}`;
}

async function draw(id) {
  try {
    const drawn = await PARTS[id]();
    if (drawn) at(id).innerHTML = drawn.text;
  } catch (problem) {
    at(id).innerHTML = html`<p>${words.failed} ${problem.message}</p>`.text;
    at(id).closest("details")?.setAttribute("open", "");
  }
}

/** Asks for all parts at once, and shows each only below those before it: nothing that is seen moves. */
async function drawAll() {
  const drawn = Object.keys(PARTS).map((id) => [at(id).closest("section"), draw(id)]);
  for (const [section, ready] of drawn) {
    await ready;
    section.hidden = false;
  }
}

async function plot(labels, values) {
  const canvas = document.querySelector("canvas");
  canvas.setAttribute("aria-label", labels.map((label, index) => `${label}: ${values[index]}`).join(", ") || words.nothing);
  const { default: Chart } = await import("./vendor/chart.js");
  const style = getComputedStyle(document.documentElement);
  const [bar, quiet, line] = ["--bar", "--quiet", "--line"].map((name) => style.getPropertyValue(name).trim());
  new Chart(canvas, {
    type: "bar",
    data: { labels, datasets: [{ data: values, backgroundColor: bar, borderRadius: 4, maxBarThickness: 48 }] },
    options: {
      animation: false,
      maintainAspectRatio: false,
      plugins: { legend: { display: false } },
      scales: { x: { grid: { display: false }, ticks: { color: quiet } }, y: { beginAtZero: true, ticks: { color: quiet, precision: 0 }, grid: { color: line } } },
    },
  });
}

async function present() {
  try {
    const { active_users, sources, end } = await ask("active");
    const now = Date.parse(end);
    put("now", table(["name", "device", "page", "seen"], active_users.map((user) => [
      link(user.full_name ?? user.email, { user: user.email }),
      user.device ?? words.unknown,
      user.current_page ?? words.unknown,
      age(user.last_seen_at, now),
    ])));
    put("sources", origins(sources, now));
    const troubled = sources.filter(({ state }) => state !== "ok").map(({ name, message }) => `${name}: ${message}`);
    put("trouble", troubled.length ? html`<a href="#sources">${troubled.join(" ")}</a>` : html`${words.well}`);
  } catch (problem) {
    put("sources", html`<p>${words.failed} ${problem.message}</p>`);
    put("trouble", html`<a href="#sources">${words.failed} ${problem.message}</a>`);
  }
  setTimeout(() => (document.visibilityState === "visible" ? present() : document.addEventListener("visibilitychange", present, { once: true })), ACTIVE_EVERY_MS);
}

function put(id, content) {
  if (at(id).dataset.drawn !== content.text) at(id).innerHTML = at(id).dataset.drawn = content.text; // what is the same keeps focus
}

function origins(sources, now) {
  const services = sources.flatMap((source) => source.services ?? []);
  const told = table(["name", "state", "seen", "message"], sources.map(({ name, state, newest, message }) => [
    name,
    state,
    newest ? age(newest, now) : "",
    html`<span class="text">${message}</span>`,
  ]));
  const heard = table(["service", "seen", "heartbeat", "lost", "forged", "unproven"], services.map((service) => [
    link(service.environment ? `${service.service} (${service.environment})` : service.service, { service: service.service }),
    age(service.last_request, now),
    html`${age(service.last_heartbeat, now)}${service.stopped ? ` (${words.stopped})` : ""}`,
    number.format(service.dropped),
    number.format(service.forged),
    number.format(service.unproven),
  ]));
  return html`${told}${heard}`;
}

function header() {
  document.documentElement.lang = lang;
  for (const element of document.querySelectorAll("[data-word]")) element.textContent = words[element.dataset.word];
  at("ranges").ariaLabel = words.period;
  at("languages").ariaLabel = words.language;
  const chosenRange = given.get("start") ? "custom" : given.get("range") in RANGES ? given.get("range") : "7d";
  const current = (is) => is && html` aria-current="true"`;
  const names = { "24h": words.hours24, "7d": words.days7, "30d": words.days30 };
  const tabs = Object.entries(names).map(([name, text]) => html`<a href="${address({ range: name }, ["lang"])}"${current(name === chosenRange)}>${text}</a>`);
  at("ranges").innerHTML = html`${tabs}<a href="#custom"${current(chosenRange === "custom")}>${words.custom}</a>`.text;
  at("languages").innerHTML = html`${["en", "es"].map((one) => html`<a href="${address({ ...filters, lang: one }, ["range", "start", "end"])}" lang="${one}"${current(one === lang)}>${one}</a>`)}`.text;
  at("ranges").lastElementChild.addEventListener("click", (event) => {
    event.preventDefault();
    at("custom").hidden = false;
    at("custom").elements.start.focus();
  });
  at("custom").hidden = chosenRange !== "custom";
  for (const name of ["start", "end"]) at("custom").elements[name].value = (given.get(name) ?? "").slice(0, 10);
  at("custom").addEventListener("submit", (event) => {
    event.preventDefault();
    const { start, end } = event.target.elements;
    location.href = address({ start: start.value, end: end.value }, ["lang"]);
  });
}

header();
document.body.dataset.state = "loading"; // seen from here on
await drawAll();
document.body.dataset.state = "drawn";
if (location.hash === "#requests") at("requests").scrollIntoView();
