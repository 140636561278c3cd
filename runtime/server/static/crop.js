// Chooses the region of the camera's frames that is classified: with the mouse, a finger, or four numbers.

import { byId, element } from "./dom.js";
import { call, request } from "./request.js";

const SIDES = [["left", "Left"], ["top", "Top"], ["width", "Width"], ["height", "Height"]];
const WHOLE = [0, 0, 1, 1];
const MIN_SIDE = 0.02; // the service refuses smaller regions

let dialog = null;
let region = WHOLE; // left, top, width and height, in fractions of the frame

// A button that opens the dialog.
export function makeCropButton() {
  const button = element("button", { type: "button", id: "crop", className: "secondary", textContent: "Crop" });
  button.onclick = openDialog;
  return button;
}

async function openDialog() {
  dialog ??= makeDialog();
  showMessage("");
  const answer = await call(() => request("/crop"));
  showRegion(answer.crop ?? WHOLE);
  byId("crop-save").disabled = byId("crop-whole").disabled = Boolean(answer.fixed);
  if (answer.error) showMessage(answer.error);
  if (answer.fixed) showMessage("The service runs with --crop. Start it without this flag to change the region here.");
  byId("crop-frame").src = `/live.jpg?whole=1&time=${Date.now()}`;
  dialog.showModal();
}

function makeDialog() {
  const frame = element("img", { id: "crop-frame", alt: "The whole camera picture", draggable: false });
  const box = element("div", { id: "crop-box" });
  const picture = element("div", { id: "crop-picture" }, frame, box);
  const fields = element("div", { className: "row" }, ...SIDES.map(makeField));
  const made = element("dialog", { id: "crop-dialog", className: "panel" },
    element("h2", { id: "crop-title", textContent: "Crop" }),
    element("p", { className: "note", textContent: "Draw the region that is classified, or enter its position and size in percent." }),
    picture, fields,
    element("p", { id: "crop-message", className: "error" }),
    element("div", { className: "row" },
      element("button", { type: "button", id: "crop-save", textContent: "Save", onclick: saveRegion }),
      element("button", { type: "button", id: "crop-whole", className: "secondary", textContent: "Whole picture", onclick: () => save(null) }),
      element("button", { type: "button", className: "secondary", textContent: "Cancel", onclick: () => made.close() })));
  made.setAttribute("aria-labelledby", "crop-title");
  frame.onerror = () => showMessage("The camera sends no picture now.");
  addDrawing(picture);
  document.body.append(made);
  return made;
}

function makeField([name, label], index) {
  const input = element("input", { type: "number", id: `crop-${name}`, min: 0, max: 100, step: "any" });
  input.oninput = () => {
    if (!Number.isFinite(input.valueAsNumber)) return;
    region = region.map((side, at) => (at === index ? input.valueAsNumber / 100 : side));
    drawBox();
  };
  return element("label", {}, label, input);
}

function addDrawing(picture) {
  let start = null;
  const position = (event) => {
    const { left, top, width, height } = picture.getBoundingClientRect();
    const share = (value) => Math.min(1, Math.max(0, value));
    return [share((event.clientX - left) / width), share((event.clientY - top) / height)];
  };
  picture.onpointerdown = (event) => {
    start = position(event);
    picture.setPointerCapture(event.pointerId);
  };
  picture.onpointermove = (event) => {
    if (start === null) return;
    const [x, y] = position(event), left = Math.min(x, start[0]), top = Math.min(y, start[1]);
    const drawn = [left, top, Math.max(x, start[0]) - left, Math.max(y, start[1]) - top];
    if (Math.min(drawn[2], drawn[3]) >= MIN_SIDE) showRegion(drawn); // else a click
  };
  picture.onpointerup = picture.onpointercancel = () => { start = null; };
}

function showRegion(numbers) {
  region = numbers;
  SIDES.forEach(([name], index) => { byId(`crop-${name}`).value = (100 * numbers[index]).toFixed(1); });
  drawBox();
}

function drawBox() {
  SIDES.forEach(([name], index) => { byId("crop-box").style[name] = `${100 * region[index]}%`; });
}

function saveRegion() {
  const isComplete = SIDES.every(([name]) => Number.isFinite(byId(`crop-${name}`).valueAsNumber));
  return isComplete ? save(region) : showMessage("Enter four numbers.");
}

async function save(crop) {
  const answer = await call(() => request("/crop", { method: "PUT", body: JSON.stringify({ crop }) }));
  if (answer.error) showMessage(answer.error);
  else dialog.close();
}

function showMessage(text) {
  byId("crop-message").textContent = text;
}
