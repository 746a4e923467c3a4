// Counts which cards of the page were really looked at, and for how long; docs/card.md tells the tag's attributes.
//
// A card is viewed once half of it, or half a screen of it, was on a visible tab for one second. That is told once a
// visit, when the tab is left or hidden: with ages, since a browser's clock may be wrong.

const VIEWED_MS = 1_000;
const LONGEST_MS = 30 * 60_000; // of a visit: an open tab that nobody looks at is no use
const BATCH = 50;
const HEADINGS = "h1, h2, h3, h4, h5, h6, .card-title, [role=heading]";
const STEPS = Array.from({ length: 21 }, (_, step) => step / 20);

/** What a card is called: as its page says, else by its id, else by its heading; null where it has no name. */
export function nameOf(card) {
  const name = card.dataset.card || card.dataset.feature || card.id || card.querySelector(HEADINGS)?.textContent || "";
  return name.replace(/\s+/g, " ").trim().slice(0, 200) || null;
}

/** Whether half of it, or half of the screen with it, can be seen. */
export const isSeen = ({ isIntersecting, intersectionRatio, intersectionRect, rootBounds }) =>
  isIntersecting && (intersectionRatio >= 0.5 || (rootBounds != null && intersectionRect.height >= rootBounds.height / 2));

/** Follows the cards until `stop` is called. `send` gets the views of a visit, `clock` gives ms. */
export function follow({ cards, send, clock = () => performance.now() }) {
  const seen = new Map(); // card → {since, total, first}, in this visit
  let began = clock();
  const observer = new IntersectionObserver((entries) => entries.forEach(look), { threshold: STEPS });
  const find = () => document.querySelectorAll(cards).forEach((card) => observer.observe(card));
  const added = new MutationObserver(find);
  const timer = setInterval(() => clock() - began > LONGEST_MS && end(), 60_000);

  function look(entry) {
    const at = seen.get(entry.target) ?? { since: null, total: 0, first: null, inView: false };
    seen.set(entry.target, at);
    at.inView = isSeen(entry);
    turn(at, at.inView && document.visibilityState === "visible");
  }

  function turn(at, visible) {
    if (visible === (at.since !== null)) return;
    if (visible) {
      at.since = clock();
      return;
    }
    const stretch = clock() - at.since;
    if (stretch >= VIEWED_MS) at.first ??= at.since;
    at.total += stretch;
    at.since = null;
  }

  function end() {
    const now = clock();
    const views = [];
    for (const [card, at] of seen) {
      turn(at, false);
      const name = nameOf(card);
      if (name !== null && at.first !== null) {
        const view = { card: name, age_ms: Math.round(now - at.first), visible_ms: Math.round(Math.min(at.total, LONGEST_MS)) };
        views.push(card.dataset.variant ? { ...view, variant: card.dataset.variant.slice(0, 100) } : view);
      }
      if (!card.isConnected) seen.delete(card);
      else Object.assign(at, { total: 0, first: null });
    }
    while (views.length) send(views.splice(0, BATCH));
  }

  function turned() {
    if (document.visibilityState === "hidden") return end();
    began = clock();
    for (const at of seen.values()) turn(at, at.inView);
  }

  function begin() {
    find();
    added.observe(document.documentElement, { childList: true, subtree: true });
  }

  document.addEventListener("visibilitychange", turned);
  addEventListener("pagehide", end);
  begin();
  return function stop() {
    end();
    clearInterval(timer);
    observer.disconnect();
    added.disconnect();
    document.removeEventListener("visibilitychange", turned);
    removeEventListener("pagehide", end);
  };
}

const HERE = import.meta.url.split(/[?#]/)[0];
const tag = globalThis.document && [...document.querySelectorAll("script[src]")].find(({ src }) => src.split(/[?#]/)[0] === HERE);
if (tag) {
  const { server, service, cards = ".card, [data-card], [data-feature]" } = tag.dataset;
  const url = new URL("views", new URL(server || new URL("../../../", HERE), location.href));
  const send = (views) => {
    const told = JSON.stringify({ service, page: location.pathname.slice(0, 1024), views });
    navigator.sendBeacon(url, new Blob([told], { type: "application/json" }));
  };
  follow({ cards, send });
}
