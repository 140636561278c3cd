// The review: pictures with uncertain answers, one at a time, most useful first.

import { byId, element, pluralize } from "./dom.js";
import { makeNameMenu, makeOption, nameOf } from "./name_menu.js";
import { call, request } from "./request.js";
import { listTaught } from "./teach.js";

const REASONS = {
  unknown: "looks like none of the classes",
  changed: "changes from frame to frame",
  "low margin": "two classes have similar probabilities",
};

let pictures = [];
let current = null;
let listed = "";
let menu = null;

const wholePercent = (share) => `${(100 * share).toFixed(0)} %`;

// Shows the state of /status.
export function showReview({ learning }) {
  if (learning.unavailable) pictures = [];
  else if (listed !== learning.review) return listPictures(learning.review);
  showPanel();
}

async function listPictures(version) {
  const answer = await call(() => request("/review"));
  if (answer.error) return;
  pictures = answer.photos;
  listed = version ?? answer.version;
  showPanel();
}

function showPanel() {
  menu ??= addMenu();
  byId("review").hidden = !pictures.length;
  byId("review-count").textContent = pluralize(pictures.length, "picture");
  // The picture does not change under the finger of a person who is about to name it.
  const next = pictures.find(({ id }) => id === current?.id) ?? pictures[0] ?? null;
  if (next) showPicture(next);
  current = next;
  const others = new Map([...byId("review-photos").children].map((item) => [item.photoId, item]));
  byId("review-photos").replaceChildren(...pictures.map((picture) => others.get(picture.id) ?? makeThumbnail(picture)));
  for (const item of byId("review-photos").children) item.firstChild.setAttribute("aria-current", item.photoId === current.id);
}

function showPicture({ id, source, answer, top, reason }) {
  if (byId("review-photo").photoId !== id) Object.assign(byId("review-photo"), { photoId: id, src: `/review/${id}` });
  byId("review-photo").alt = `Picture of ${source}`;
  const classes = top.slice(0, 2).map(({ label, probability }) => `${label} ${wholePercent(probability)}`).join(", ");
  byId("review-answer").textContent = answer;
  byId("review-reason").textContent = `${REASONS[reason]} (${classes})`;
  menu.setTitle(`What does the picture of ${source} show?`);
}

function makeThumbnail(picture) {
  const button = element("button", { type: "button" }, element("img", { alt: `${picture.answer}, ${picture.source}`, src: `/review/${picture.id}`, loading: "lazy" }));
  button.onclick = () => {
    current = pictures.find(({ id }) => id === picture.id);
    showPanel();
    menu.querySelector(".name-option").focus();
  };
  return element("li", { photoId: picture.id }, button);
}

function addMenu() {
  const skip = makeOption(["s"], "skip", skipPicture);
  skip.classList.add("other");
  const created = makeNameMenu({ title: "", onName: namePicture, more: [skip] });
  byId("review-menu").append(created);
  return created;
}

// Returns an error message, or "".
async function namePicture(label) {
  const { id } = current;
  const answer = await call(() => request(`/review/${id}?label=${encodeURIComponent(label)}`, { method: "POST" }));
  if (answer.error) return answer.error;
  await showNext(id, `Named ${nameOf(label)}.`);
  await listTaught();
  return "";
}

async function skipPicture() {
  const { id } = current;
  await call(() => request(`/review/${id}`, { method: "DELETE" }));
  await showNext(id, "Skipped.");
}

// The next picture comes first in the order; the focus stays on the buttons, for the next key.
async function showNext(id, text) {
  const left = pictures.filter((picture) => picture.id !== id).length;
  const hadFocus = byId("review").contains(document.activeElement);
  await listPictures();
  byId("review-announcement").textContent = `${text} ${left ? `${pluralize(left, "picture")} left.` : "No pictures left."}`;
  if (!hadFocus) return;
  if (byId("review").hidden) byId(byId("teach").hidden ? "choose-photos" : "learn").focus();
  else if (!byId("review").contains(document.activeElement)) menu.querySelector(".name-option").focus();
}
