// Teaching: pictures that a person names, "Learn", which makes the model answer with the names, and "Undo".

import { byId, element, isDisabled, pluralize, setDisabled } from "./dom.js";
import { closeMenu, makeNameMenu, nameOf, setClasses } from "./name_menu.js";
import { call, request, requestWhenFree } from "./request.js";

const NAMED_TIME = 2000; // ms that the button of the live picture shows the name
const MAX_SHOWN = 24; // pictures of one label; the newest ones

let listed = ""; // identifies the pictures that the panel shows
let status = null; // the field `learning` of /status
const answers = new Set(); // the answers on the page, each with its button "Wrong?"
let waiting = 0; // pictures that are not learned yet
let removed = 0; // pictures that are learned and were removed
let isLearning = false;
let onLearned = async () => {};
let onList = () => {};

// --- "Wrong?" ---

// The button "Wrong?" with its menu, for the photo that `getPhoto` returns, a Blob. The live picture has another
// photo each time.
export function makeWrongButton(source, getPhoto, isLive = false) {
  const button = element("button", { type: "button", className: "wrong secondary", textContent: "Wrong?" });
  const learn = element("button", { type: "button", className: "learn-here", textContent: "Learn", hidden: true });
  const message = element("p", { className: "message" });
  const actions = element("div", { className: "wrong-actions" }, element("div", { className: "row" }, button, learn), message);
  const answer = { source, getPhoto, isLive, actions, button, learn, message, menu: null };
  button.setAttribute("aria-expanded", "false");
  button.onclick = () => (answer.menu ? closeAnswer(answer) : openAnswer(answer));
  learn.onclick = () => learnNames(answer);
  setButton(answer, "Wrong?");
  answers.add(answer);
  return actions;
}

function setButton({ button, source }, text) {
  button.textContent = text;
  button.setAttribute("aria-label", `${text} ${source}`);
}

function openAnswer(answer) {
  const photo = answer.getPhoto();
  if (!photo) return;
  const menu = makeNameMenu({
    title: `What does ${answer.source} show?`,
    onName: (label) => nameAnswer(answer, photo, label),
    onClose: () => closeAnswer(answer),
  });
  menu.prepend(makeQuestion(answer, photo));
  answer.menu = menu;
  answer.actions.append(menu);
  answer.button.setAttribute("aria-expanded", "true");
  menu.querySelector(".name-option").focus();
}

// The live picture moves on: its menu shows the picture that gets the name.
function makeQuestion({ isLive }, photo) {
  const text = element("p", { textContent: "What does this picture show?" });
  if (!isLive) return element("div", { className: "question" }, text);
  const url = URL.createObjectURL(photo);
  const image = element("img", { alt: "The picture that gets the name", src: url, onload: () => URL.revokeObjectURL(url) });
  return element("div", { className: "question" }, image, text);
}

function closeAnswer(answer) {
  closeMenu(answer.menu);
  answer.menu = null;
  answer.button.setAttribute("aria-expanded", "false");
  answer.button.focus();
}

// Returns an error message, or "".
async function nameAnswer(answer, photo, label) {
  const form = new FormData();
  form.append("file", photo, answer.source);
  const taught = await call(() => requestWhenFree(`/taught?label=${encodeURIComponent(label)}`, { method: "POST", body: form }));
  if (taught.error) return taught.error;
  if (answer.menu) closeAnswer(answer); // "Wrong?" may have closed it
  showNamed(answer, taught.label);
  await listTaught();
  announce(`${answer.source} is named ${nameOf(label)}. ${pluralize(waiting, "photo")} to learn.`);
  return "";
}

function showNamed(answer, label) {
  for (const other of answers) other.learn.hidden = true; // one is enough
  answer.learn.hidden = false;
  answer.message.textContent = "";
  setButton(answer, `Named ${nameOf(label)}`);
  if (answer.isLive) setTimeout(() => setButton(answer, "Wrong?"), NAMED_TIME);
}

// --- Learn, Undo, Forget ---

// Learns all named pictures. The result is shown in the panel, and beside the answer where it was started.
async function learnNames(answer = null) {
  if (isLearning || (answer === null && isDisabled(byId("learn")))) return;
  isLearning = true;
  const show = (text, isError) => {
    showMessage(text, isError);
    if (answer) showIn(answer.message, text, isError);
  };
  show("Learning …");
  const result = await call(() => requestWhenFree("/learn", { method: "POST" }));
  isLearning = false;
  show(result.error ?? [`${result.text}.`, result.warning].join(" ").trim(), Boolean(result.error));
  if (!result.error) await afterChange(answer);
}

async function afterChange(answer = null) {
  answer?.button.focus(); // its neighbour "Learn" disappears
  for (const other of answers) {
    if (!other.actions.isConnected) answers.delete(other); // of a photo that has left the page
    other.learn.hidden = true;
    setButton(other, "Wrong?");
    if (other !== answer) other.message.textContent = "";
  }
  await listTaught();
  await onLearned();
}

async function undo() {
  const result = await call(() => requestWhenFree("/learn/undo", { method: "POST" }));
  showMessage(result.error ?? `${result.text}.`, Boolean(result.error));
  await afterChange();
  moveFocus();
}

async function forget() {
  if (!confirm("Forget everything that this device learned, and delete the named pictures?")) return;
  const result = await call(() => requestWhenFree("/learn", { method: "DELETE" }));
  showMessage(result.error ?? "The model gives its original answers.", Boolean(result.error));
  await afterChange();
  moveFocus();
}

// Moves the focus from a button that has disappeared.
function moveFocus() {
  if (document.activeElement === document.body) byId(byId("teach").hidden ? "choose-photos" : "learn").focus();
}

function showMessage(text, isError = false) {
  showIn(byId("teach-message"), text, isError);
  announce(text);
  showPanel();
}

function showIn(target, text, isError = false) {
  target.textContent = text;
  target.classList.toggle("error", isError);
}

function announce(text) {
  byId("teach-announcement").textContent = text;
}

// --- the panel ---

// Shows the state of /status. Other viewers may have named pictures.
export function showTeaching({ learning }) {
  status = learning;
  document.body.classList.toggle("can-learn", !status.unavailable);
  setClasses(status.labels);
  if (!status.unavailable && listed !== keyOf(status)) listTaught();
  showPanel();
}

const keyOf = ({ photos, newest, learned }) => JSON.stringify([photos, newest, learned?.created ?? null]);

function showPanel() {
  const isEmpty = !status || status.unavailable || !(byId("teach-groups").children.length || status.learned);
  byId("teach").hidden = isEmpty && !byId("teach-message").textContent;
  setDisabled(byId("learn"), !(waiting || removed) || isLearning);
  byId("undo-learning").hidden = !status?.can_undo;
  byId("forget").hidden = !status?.learned;
}

export async function listTaught() {
  const answer = await call(() => request("/taught"));
  if (answer.error) return;
  const { photos, folder, learned, can_undo } = answer;
  status = { ...status, photos: photos.length, newest: photos.at(-1)?.id ?? null, learned, can_undo };
  listed = keyOf(status);
  waiting = photos.filter((photo) => !photo.learned).length;
  removed = answer.removed;
  setClasses(answer.labels);
  byId("teach-count").textContent = countText(photos.length);
  byId("taught-folder").textContent = folder;
  showGroups(photos, new Set(answer.new_labels));
  showPanel();
  onList();
}

function countText(count) {
  if (waiting) return `${waiting} of ${pluralize(count, "photo")} not learned yet`;
  return removed ? `${pluralize(count, "photo")}, ${removed} removed` : pluralize(count, "photo");
}

function showGroups(photos, newLabels) {
  const kept = new Map([...byId("teach-groups").querySelectorAll("li")].map((item) => [item.photoId, item]));
  const groups = new Map();
  for (const photo of photos.reverse()) groups.set(photo.label, [...(groups.get(photo.label) ?? []), photo]);
  byId("teach-groups").replaceChildren(...[...groups].map(([label, group]) => {
    const head = element("h3", {}, element("span", { textContent: nameOf(label) }), element("span", { className: "note", textContent: groupText(label, group, newLabels) }));
    const items = group.slice(0, MAX_SHOWN).map((photo) => kept.get(photo.id) ?? makeThumbnail(photo));
    group.slice(0, MAX_SHOWN).forEach((photo, index) => items[index].classList.toggle("waiting", !photo.learned));
    return element("section", {}, head, element("ul", { className: "thumbnails" }, ...items));
  }));
}

function groupText(label, group, newLabels) {
  const hidden = group.length - MAX_SHOWN;
  const more = hidden > 0 ? `, the newest ${MAX_SHOWN} are shown` : "";
  return `${newLabels.has(label) ? "new class, " : ""}${pluralize(group.length, "photo")}${more}`;
}

function makeThumbnail({ id, label, time }) {
  const when = new Date(time).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });
  const image = element("img", { alt: "", src: `/taught/${id}`, loading: "lazy" });
  const remove = element("button", { type: "button", textContent: "×", title: "Remove this picture" });
  remove.setAttribute("aria-label", `Remove the picture of ${nameOf(label)}, named on ${when}`);
  const item = element("li", { photoId: id, title: `${nameOf(label)}, named on ${when}` }, image, remove);
  remove.onclick = async () => {
    const all = [...byId("teach-groups").querySelectorAll("li")], position = all.indexOf(item);
    const neighbour = all[position + 1] ?? all[position - 1]; // before a list removes the item
    const answer = await call(() => request(`/taught/${id}`, { method: "DELETE" }));
    if (answer.error) return showMessage(answer.error, true);
    await listTaught();
    if (neighbour?.isConnected) neighbour.lastChild.focus();
    else moveFocus();
  };
  return item;
}

// `afterLearning` is called after the answers may have changed, `afterListing` when pictures were named or removed.
export function addTeachListeners(afterLearning, afterListing) {
  onLearned = afterLearning;
  onList = afterListing;
  byId("learn").onclick = () => learnNames();
  byId("undo-learning").onclick = undo;
  byId("forget").onclick = forget;
}
