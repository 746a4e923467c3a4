// render(answer) of the card, by node's own runner: node --test tests/card
import assert from "node:assert/strict";
import test from "node:test";

import { ago, language, render } from "../../static/js/components/analytics-widget.js";

const NOW = Date.parse("2026-03-01T12:00:00Z");
const BAD = `<img src=x onerror=alert(1)> & "'`;
const ESCAPED = "&lt;img src=x onerror=alert(1)&gt; &amp; &quot;&#39;";

const user = (more = {}) => ({
  email: "leo@example.com",
  device: "iphone",
  last_seen: "2 min ago",
  last_seen_at: "2026-03-01T11:57:30.000Z",
  current_page: "/dashboard",
  full_name: "Leo Sanz",
  ...more,
});

const answer = (more = {}) => ({
  top_features: [],
  accesses_by_day: [{ day: "2026-02-28", accesses: 0 }, { day: "2026-03-01", accesses: 0 }],
  summary: { period_days: 7, total_sessions: 0, unique_users: 0, total_accesses: 0 },
  active_users: [],
  total_active: 0,
  sources: [{ name: "store", state: "ok", message: "It answers." }],
  ...more,
});

const one = answer({
  summary: { period_days: 7, total_sessions: 1, unique_users: 1, total_accesses: 12345 },
  top_features: [{ feature: "Prophet forecast", uses: 234 }],
  active_users: [user()],
  total_active: 1,
});

for (const [lang, words] of Object.entries({
  en: { title: "Analytics, last week", nobody: "Nobody in the last five minutes.", unused: "Nothing was used yet.", ago: "2 min ago", big: "12,345", empty: "No data yet", away: "The server does not answer. Last answer: 3 h ago." },
  es: { title: "Analytics Última Semana", nobody: "Nadie en los últimos cinco minutos.", unused: "Todavía no se ha usado nada.", ago: "hace 2 min", big: "12.345", empty: "Aún no hay datos", away: "El servidor no responde. Última respuesta: hace 3 h." },
})) {
  const drawn = (given, more = {}) => render(given, { lang, now: NOW, ...more });

  test(`${lang}: a week without anybody has zeros, not gaps`, () => {
    const { state, title, status, numbers, days, features, active } = drawn(answer());
    assert.deepEqual({ state, title, status }, { state: "ok", title: words.title, status: "" });
    assert.deepEqual(numbers.match(/(?<=<dd>)[^<]*/g), ["0", "0", "0"]);
    assert.deepEqual(days, answer().accesses_by_day);
    assert.ok(features.includes(words.unused) && active.includes(words.nobody));
  });

  test(`${lang}: one person is told by name, device, page and time`, () => {
    const { numbers, features, active } = drawn(one);
    assert.deepEqual(numbers.match(/(?<=<dd>)[^<]*/g), ["1", "1", words.big]);
    assert.match(features, /<li><span>Prophet forecast<\/span> <b>234<\/b><\/li>/);
    for (const told of ["Leo Sanz", 'title="leo@example.com"', "iphone · /dashboard", words.ago]) assert.ok(active.includes(told), told);
  });

  test(`${lang}: of many the first are shown, and how many more there are`, () => {
    const many = answer({
      top_features: Array.from({ length: 30 }, (_, index) => ({ feature: `f${index}`, uses: 30 - index })),
      active_users: Array.from({ length: 30 }, (_, index) => user({ email: `p${index}@example.com` })),
      total_active: 30,
    });
    const { features, active } = drawn(many);
    assert.equal(features.match(/<li>/g).length, 5);
    assert.equal(active.match(/<li>/g).length, 8);
    assert.ok(active.includes("22") && active.includes("<b>30</b>"));
  });

  test(`${lang}: whatever a name says, it is text`, () => {
    const hostile = answer({
      top_features: [{ feature: BAD, uses: 1 }],
      active_users: [user({ email: BAD, device: BAD, full_name: BAD, current_page: BAD, last_seen_at: BAD })],
      total_active: 1,
      sources: [{ name: BAD, state: "unreadable", message: BAD }],
    });
    for (const problem of [null, { kind: "broken", message: BAD }, { kind: "refused", message: BAD }]) {
      const { status, features, active, table } = drawn(hostile, { problem });
      const all = status + features + active + table;
      assert.ok(!all.includes("<img"), all);
      assert.ok(status.includes(ESCAPED) && features.includes(ESCAPED) && active.includes(ESCAPED));
    }
  });

  test(`${lang}: an answer that lacks its source says which, and why`, () => {
    const source = { name: "store", state: "bucket missing", message: "InfluxDB has no bucket requests." };
    const { state, status } = drawn(answer({ sources: [source] }));
    assert.equal(state, "missing");
    assert.ok(status.includes("store: InfluxDB has no bucket requests."));
  });

  test(`${lang}: before the first request the card says so`, () => {
    const { state, status } = drawn(answer({ sources: [{ name: "store", state: "no data yet", message: "" }] }));
    assert.equal(state, "empty");
    assert.ok(status.includes(words.empty));
  });

  test(`${lang}: while the server is away its last answer stays, with its age`, () => {
    const away = drawn(one, { problem: { kind: "away", at: NOW - 3 * 3_600_000 } });
    assert.equal(away.state, "away");
    assert.ok(away.status.includes(words.away));
    assert.ok(away.active.includes("Leo Sanz"));
  });

  test(`${lang}: without names there are numbers, and nobody's name`, () => {
    const { active_users, ...totals } = one;
    for (const given of [one, totals]) {
      const { active, numbers } = drawn(given, { names: false });
      assert.ok(!/leo/i.test(active) && numbers.includes(words.big));
    }
  });

  test(`${lang}: before any answer there is a place for everything`, () => {
    const { state, numbers, days } = drawn(null);
    assert.deepEqual({ state, days }, { state: "loading", days: [] });
    assert.deepEqual(numbers.match(/(?<=<dd>)[^<]*/g), ["–", "–", "–"]);
  });
}

test("the language is the card's, else the page's, else English", () => {
  const found = [["es", "en"], [null, "es-MX"], [null, "fr"], [undefined, undefined], ["EN-us", "es"]].map((wishes) => language(...wishes));
  assert.deepEqual(found, ["es", "es", "en", "en", "en"]);
});

test("ages are told as the server tells them", () => {
  const ages = [-5, 59_999, 60_000, 3_599_999, 3_600_000, 86_400_000, 172_800_000].map((age) => [ago(age, "en"), ago(age, "es")]);
  assert.deepEqual(ages, [
    ["just now", "ahora mismo"],
    ["just now", "ahora mismo"],
    ["1 min ago", "hace 1 min"],
    ["59 min ago", "hace 59 min"],
    ["1 h ago", "hace 1 h"],
    ["1 day ago", "hace 1 día"],
    ["2 days ago", "hace 2 días"],
  ]);
});
