// The tray: photos that show none of the classes, and the correction that is fitted to them.

import { byId, element, isDisabled, pluralize, setDisabled } from "./dom.js";
import { call, request, requestWhenFree } from "./request.js";

const ADDED_TIME = 1500; // ms that a button says "Added"

let listed = "0 null"; // identifies the photos that the tray shows
let photoCount = 0;
let isCorrected = false;
let isAdapting = false;

// A button that adds the photo that `getPhoto` returns, a Blob, to the tray.
export function makeMarkButton(source, getPhoto) {
  const button = element("button", { type: "button", className: "mark secondary", textContent: "None of these" });
  button.setAttribute("aria-label", `None of these: ${source}`);
  button.onclick = async () => {
    const photo = getPhoto();
    if (isDisabled(button) || !photo) return; // the camera has sent no picture yet
    setMarkButton(button, "Adding …", true);
    const error = await addPhoto(source, photo);
    if (error) return setMarkButton(button, "None of these", false);
    setMarkButton(button, "Added", true);
    setTimeout(() => setMarkButton(button, "None of these", false), ADDED_TIME);
  };
  return button;
}

function setMarkButton(button, text, disabled) {
  button.textContent = text;
  setDisabled(button, disabled);
}

// Returns an error message, or "".
async function addPhoto(source, photo) {
  const form = new FormData();
  form.append("file", photo, source);
  const answer = await call(() => requestWhenFree("/none", { method: "POST", body: form }));
  if (answer.error) showMessage(`${source}: ${answer.error}`, true);
  else {
    await listPhotos();
    showMessage(`Added: ${pluralize(answer.photos, "photo")} in the tray.`);
  }
  return answer.error ?? "";
}

function showMessage(text, isError = false) {
  byId("tray-message").textContent = byId("tray-announcement").textContent = text;
  byId("tray-message").classList.toggle("error", isError);
  showPanel();
}

function showPanel() {
  byId("tray").hidden = !photoCount && !isCorrected && !byId("tray-message").textContent;
  setDisabled(byId("adapt"), !photoCount || isAdapting);
  byId("empty-tray").hidden = !photoCount;
  byId("reset").hidden = !isCorrected;
}

// Shows the state of /status. Other viewers may have changed the tray.
export function showTray({ tray, correction }) {
  document.body.classList.toggle("cannot-adapt", tray.unavailable !== "");
  isCorrected = correction !== null;
  if (!tray.unavailable && listed !== keyOf(tray.photos, tray.newest)) listPhotos();
  showPanel();
}

const keyOf = (count, newest) => `${count} ${newest}`;

async function listPhotos() {
  const answer = await call(() => request("/none"));
  if (answer.error) return;
  const { photos, folder } = answer;
  photoCount = photos.length;
  listed = keyOf(photoCount, photos.at(-1)?.id ?? null);
  byId("tray-count").textContent = pluralize(photoCount, "photo");
  byId("tray-folder").textContent = folder;
  const kept = new Map([...byId("tray-photos").children].map((item) => [item.photoId, item]));
  byId("tray-photos").replaceChildren(...photos.reverse().map((photo) => kept.get(photo.id) ?? makeThumbnail(photo)));
  showPanel();
}

function makeThumbnail({ id, time }) {
  const when = new Date(time).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });
  const image = element("img", { alt: "", src: `/none/${id}`, loading: "lazy" });
  const remove = element("button", { type: "button", textContent: "×", title: "Remove this photo" });
  remove.setAttribute("aria-label", `Remove the photo added on ${when}`);
  const item = element("li", { photoId: id, title: `Added on ${when}` }, image, remove);
  remove.onclick = async () => {
    const neighbour = item.nextElementSibling ?? item.previousElementSibling; // before a list removes the item
    const answer = await call(() => request(`/none/${id}`, { method: "DELETE" }));
    if (answer.error) return showMessage(answer.error, true);
    await listPhotos();
    if (neighbour?.isConnected) neighbour.lastChild.focus();
    else moveFocus();
  };
  return item;
}

// Moves the focus from a button that has disappeared.
function moveFocus() {
  byId(byId("tray").hidden ? "choose-photos" : "adapt").focus();
}

async function adapt() {
  if (isDisabled(byId("adapt"))) return false;
  isAdapting = true;
  showMessage("Adapting …");
  const answer = await call(() => requestWhenFree("/adapt", { method: "POST" }));
  isAdapting = false;
  if (answer.error) {
    showMessage(answer.error, true);
    return false;
  }
  for (const item of byId("tray-photos").children) {
    item.classList.toggle("left-out", answer.left_out.includes(item.photoId));
  }
  showMessage([`${answer.text}.`, answer.warning].join(" ").trim());
  return true;
}

async function reset() {
  const answer = await call(() => requestWhenFree("/adapt", { method: "DELETE" }));
  showMessage(answer.error ?? "The correction was removed.", Boolean(answer.error));
}

async function emptyTray() {
  if (!confirm(`Remove ${byId("tray-count").textContent} from the tray?`)) return;
  const answer = await call(() => request("/none", { method: "DELETE" }));
  showMessage(answer.error ?? "The tray is empty.", Boolean(answer.error));
  await listPhotos();
  moveFocus();
}

// `onChange` is called after the correction changed.
export function addTrayListeners(onChange) {
  byId("adapt").onclick = async () => { if (await adapt()) await onChange(); };
  byId("reset").onclick = async () => { await reset(); moveFocus(); await onChange(); };
  byId("empty-tray").onclick = emptyTray;
}
