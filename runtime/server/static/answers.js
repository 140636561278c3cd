// Shows predictions as labels, bars and cards, for the page of the service and for the browser page.
// A prediction is { source, top: [{ label, probability }], known, ms: { decode, infer } }, or { source, error }.

import { byId, element, percent } from "./dom.js";

const LABEL_INTERVAL = 300; // ms; a percentage that changes faster is unreadable
const MAX_CARDS = 12; // photos kept on the page

export const milliseconds = (ms) => `${ms < 100 ? ms.toFixed(1) : Math.round(ms)} ms`;
export const isUnknown = (prediction) => prediction.known === false; // null: the model has no detector

function showLabel(target, prediction) {
  const unknown = isUnknown(prediction);
  const { label, probability } = prediction.top[0];
  target.classList.toggle("unknown", unknown);
  target.replaceChildren(...(unknown
    ? [element("span", { textContent: "unknown" }), element("span", { className: "nearest", textContent: `nearest: ${label} ${percent(probability)}` })]
    : [element("span", { textContent: label }), element("span", { className: "percent", textContent: percent(probability) })]));
}

export function showBars(target, prediction) {
  target.classList.toggle("unknown", isUnknown(prediction));
  while (target.children.length > prediction.top.length) target.lastChild.remove();
  prediction.top.forEach(({ label, probability }, row) => {
    const bar = target.children[row] ?? target.appendChild(element("li", {}, element("span"), element("span", { className: "value" })));
    bar.style.setProperty("--share", `${100 * probability}%`);
    bar.children[0].textContent = label;
    bar.children[1].textContent = percent(probability);
  });
}

// Shows the label of the camera's newest frame, unless the same label is shown for less than LABEL_INTERVAL.
// `shown` holds the label and its time. Returns whether the label was shown.
export function showCameraLabel(prediction, shown) {
  const label = isUnknown(prediction) ? "unknown" : prediction.top[0].label;
  const changed = label !== shown.label;
  if (changed) byId("camera-announcement").textContent = label; // a screen reader announces changes only
  if (!changed && performance.now() - shown.time < LABEL_INTERVAL) return false;
  Object.assign(shown, { label, time: performance.now() });
  showLabel(byId("camera-label"), prediction);
  return true;
}

// Adds a card for each photo, newest first, and removes the oldest cards that have a result. Returns the new cards.
export function addCards(files) {
  const cards = files.map(addCard);
  for (const card of [...byId("results").children].slice(MAX_CARDS)) {
    if (card.classList.contains("pending")) continue;
    URL.revokeObjectURL(card.previewUrl);
    card.remove();
  }
  return cards;
}

function addCard(file) {
  const previewUrl = URL.createObjectURL(file);
  const photo = element("img", { className: "photo", alt: `Your photo ${file.name}`, src: previewUrl });
  photo.onerror = () => photo.replaceWith(element("div", { className: "photo", textContent: "no preview" }));
  const text = element("div", { className: "text" }, element("p", { className: "label", textContent: "…" }));
  const card = element("li", { className: "result pending", previewUrl, file }, photo, text);
  byId("results").prepend(card);
  return card;
}

// Shows a prediction or an error in its card, instead of an earlier one, above the elements of card.actions.
export function showResult(card, result) {
  const [photo, text] = card.children;
  const label = text.firstChild;
  for (const child of [...text.children].slice(1)) if (!card.actions?.includes(child)) child.remove();
  card.classList.remove("pending");
  card.classList.toggle("failed", Boolean(result.error));
  if (result.error) {
    label.className = "label";
    label.textContent = "Not classified";
    label.after(element("p", { className: "details", textContent: `${result.source}: ${result.error}` }));
  } else {
    const bars = element("ol", { className: "bars" });
    showLabel(label, result);
    showBars(bars, result);
    const converted = result.converted ? ", converted by the browser" : "";
    const times = `decoding ${milliseconds(result.ms.decode)}, inference ${milliseconds(result.ms.infer)}`;
    label.after(bars, element("p", { className: "details", textContent: `${result.source}${converted} · ${times}` }));
  }
  const words = [...label.childNodes].map((node) => node.textContent).join(" ");
  photo.alt = `Your photo ${card.file.name}: ${words}`;
  byId("photo-announcement").textContent = `${result.source}: ${words}${result.error ? ` ${result.error}` : ""}`;
}

// Shows terms with their texts in a <dl>.
export function showPairs(target, pairs) {
  const key = JSON.stringify(pairs);
  if (target.key === key) return; // an unchanged list keeps the reader's selection
  target.key = key;
  target.replaceChildren(...pairs.map(([term, text]) => element("div", {}, element("dt", { textContent: term }), element("dd", { textContent: text }))));
}
