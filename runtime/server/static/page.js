// Shows the camera's newest frame with its prediction, classifies photos, and shows the model and its speed.

import { addCards, isUnknown, milliseconds, showBars, showCameraLabel, showPairs, showResult } from "./answers.js";
import { makeCropButton } from "./crop.js";
import { addDropListeners, byId, element, longDate, percent, pluralize, sleep, untilVisible } from "./dom.js";
import { request, requestWhenFree, retryDelay } from "./request.js";
import { showReview } from "./review.js";
import { addTeachListeners, makeWrongButton, showTeaching } from "./teach.js";
import { addTrayListeners, makeMarkButton, showTray } from "./tray.js";

const STATUS_INTERVAL = 2000; // ms
const ANSWER_TIMEOUT = 10_000; // ms; the service holds a request for a frame for 5 seconds
const FRAME_INTERVAL = 40; // ms; 25 frames per second look continuous

// The page shows "Wrong?" if the service learns, else "None of these" if it adapts.
const makeActions = (source, getPhoto, isLive = false) => [makeWrongButton(source, getPhoto, isLive), makeMarkButton(source, getPhoto)];

// --- camera ---

let isWatching = false;
let shownFrame = null; // a Blob

async function watchCamera() {
  const shown = { frame: 0, label: "", time: 0 };
  byId("camera-actions").append(...makeActions("camera.jpg", () => shownFrame, true), makeCropButton());
  for (;;) {
    await untilVisible();
    if (byId("camera").hidden) { // the service runs without a camera now
      await sleep(STATUS_INTERVAL);
      continue;
    }
    const started = performance.now();
    try {
      const response = await request(`/live.jpg?after=${shown.frame}`, { timeout: ANSWER_TIMEOUT });
      if (response.status === 200) {
        const prediction = JSON.parse(response.headers.get("Prediction"));
        await showFrame(await response.blob());
        shown.frame = prediction.frame;
        showFramePrediction(prediction, shown);
      } else if (response.status !== 204) {
        await sleep(retryDelay(response));
      }
    } catch {
      await sleep(1000); // updateStatus reports that the service does not respond
    }
    await sleep(Math.max(0, FRAME_INTERVAL - (performance.now() - started)));
  }
}

function showFramePrediction(prediction, shown) {
  showCameraLabel(prediction, shown);
  showBars(byId("camera-bars"), prediction);
  byId("camera-rate").textContent = `${prediction.fps.toFixed(1)} frames/s · ${Math.round(prediction.age_ms)} ms delay`;
}

async function showFrame(blob) {
  const image = byId("camera-frame"), previous = image.src;
  shownFrame = blob;
  image.src = URL.createObjectURL(blob);
  image.hidden = false;
  try {
    await image.decode();
  } finally {
    if (previous) URL.revokeObjectURL(previous);
  }
}

// --- photos ---

const pending = []; // cards of photos without a prediction
let isClassifying = false;
let maxBytes = Infinity;

function addPhotos(files) {
  pending.push(...addCards(files));
  if (!isClassifying) classifyPending();
}

async function classifyPending() {
  isClassifying = true;
  for (let card; (card = pending.shift());) {
    const result = await classify(card.file);
    showResult(card, result);
    if (result.error || card.actions) continue;
    card.actions = makeActions(result.source, () => result.converted ?? card.file);
    card.children[1].append(...card.actions);
  }
  isClassifying = false;
  updateStatus();
}

// The photos on the page get the answers of another correction or of other learned names.
async function classifyAgain() {
  pending.push(...[...byId("results").children].filter((card) => !pending.includes(card)).reverse());
  if (!isClassifying) await classifyPending();
}

// Returns the service's JSON: a prediction, or { source, error }.
async function classify(file) {
  const source = file.name || "photo";
  if (file.size > maxBytes) {
    return { source, error: `larger than ${maxBytes / 1e6} MB, the limit of this service` };
  }
  try {
    const form = new FormData();
    form.append("file", file, source);
    const response = await requestWhenFree("/classify", { method: "POST", body: form });
    const result = await response.json();
    if (response.status === 415) {
      const converted = await convertToJpeg(file);
      if (converted) return { ...(await classify(converted)), source, converted };
    }
    return result;
  } catch {
    return { source, error: "the service does not respond" };
  }
}

// The browser may read a format that the service does not, such as HEIC without pillow-heif.
async function convertToJpeg(file) {
  if (file.converted) return null;
  try {
    const bitmap = await createImageBitmap(file);
    const canvas = element("canvas", { width: bitmap.width, height: bitmap.height });
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
    return blob && Object.assign(new File([blob], `${file.name}.jpg`, { type: "image/jpeg" }), { converted: true });
  } catch {
    return null;
  }
}

function addInputListeners() {
  byId("choose-photos").onclick = () => byId("photo-files").click();
  byId("take-photo").onclick = () => byId("camera-file").click();
  for (const input of [byId("photo-files"), byId("camera-file")]) {
    input.onchange = () => {
      addPhotos([...input.files]);
      input.value = ""; // so that choosing the same photo again is a change
    };
  }
  addDropListeners(addPhotos);
}

// --- status: model, speed, camera history ---

async function updateStatus() {
  let status;
  try {
    const response = await request("/status", { timeout: ANSWER_TIMEOUT });
    if (!response.ok) throw new Error((await response.json()).error);
    status = await response.json();
  } catch {
    showConnection("service offline", true);
    byId("camera-problem").textContent = "The service does not respond: this picture is old.";
    byId("camera-rate").textContent = "";
    return;
  }
  maxBytes = status.max_bytes;
  byId("main").hidden = byId("footer").hidden = false;
  byId("model-name").textContent = status.model.name;
  document.title = `${status.model.name} · vgg-edge`;
  byId("curl-example").textContent = `curl -F file=@photo.jpg ${location.origin}/classify`;
  showCameraStatus(status.camera);
  showTray(status);
  showTeaching(status);
  showReview(status);
  showSpeed(status);
  showModel(status);
  byId("history").hidden = status.history.length === 0;
  byId("history-list").replaceChildren(...status.history.slice(-8).reverse().map(historyEntry));
}

function showConnection(text, isBad) {
  const badge = byId("connection");
  badge.classList.toggle("bad", isBad);
  if (badge.textContent !== text) badge.textContent = text; // a screen reader announces every assignment
}

function showCameraStatus(camera) {
  document.body.classList.toggle("no-camera", camera === null);
  byId("camera").hidden = camera === null;
  if (camera === null) return showConnection("ready", false);
  if (!isWatching) {
    isWatching = true;
    watchCamera();
  }
  const problem = camera.problem || (camera.fps === null ? "Waiting for the camera …" : "");
  byId("camera-problem").textContent = problem;
  showConnection(camera.problem ? "camera offline" : problem ? "starting" : "live", Boolean(camera.problem));
}

function showSpeed({ speed, camera, engine, threads }) {
  const ms = (value) => (value === null ? "–" : milliseconds(value));
  const tiles = [["photo, median", ms(speed.p50_ms)], ["photo, 95th percentile", ms(speed.p95_ms)], ["decoding", ms(speed.decode_ms)], ["inference", ms(speed.infer_ms)]];
  if (camera && camera.fps !== null) tiles.unshift(["frames/s", camera.fps.toFixed(1)], ["frame delay", `${Math.round(camera.age_ms)} ms`]);
  showPairs(byId("speed"), tiles);
  byId("speed-note").textContent = `${engine} on ${pluralize(threads, "thread")}; ${pluralize(speed.photos, "photo")} classified since the start`;
}

function showModel({ model, news, correction, reject, learning }) {
  const labels = model.labels.map((label) => element("li", { textContent: label }));
  if (byId("labels").textContent !== model.labels.join("")) byId("labels").replaceChildren(...labels);
  const facts = [
    ["file", `${model.file}, ${(model.bytes / 1e6).toFixed(1)} MB`],
    ["input", `${model.input[1]} × ${model.input[0]} pixels`],
    ["created", `${longDate(model.created)}${model.synthetic ? ", from drawn pictures" : ""}`],
    ["sha256", `${model.sha256.slice(0, 16)}…`],
  ];
  if (model.precision) facts.splice(1, 0, ["precision", model.precision]);
  if (correction) facts.push(["correction", describeCorrection(correction)]);
  if (reject !== null) facts.push(["reject", `“unknown” for about ${percent(reject)} of the photos of the classes`]);
  facts.push(["learning", describeLearning(learning)]);
  const { parity } = model;
  if (parity?.top1 !== undefined) facts.push(["accuracy", `${percent(parity.top1)} of ${parity.n} test photos`]);
  if (parity?.agreement !== undefined) {
    const difference = parity.max_dp === undefined ? "" : `; probabilities differ by at most ${parity.max_dp.toFixed(3)}`;
    facts.push(["parity", `same label as the trained model on ${percent(parity.agreement)} of the test photos${difference} (${parity.engine})`]);
  }
  showPairs(byId("model"), facts);
  byId("model-news").textContent = news;
}

function describeLearning({ unavailable, learned }) {
  const off = unavailable ? `off: ${unavailable}` : "press “Wrong?” below an answer";
  if (!learned) return off;
  const names = learned.new_labels.length ? `; new: ${learned.new_labels.join(", ")}` : "";
  return `${pluralize(learned.photos, "photo")} on ${longDate(learned.created)}${names}${unavailable ? `; ${off}` : ""}`;
}

function describeCorrection({ created, photos, rejected_after }) {
  return `fitted to ${pluralize(photos, "photo")} on ${longDate(created)}; rejects ${percent(rejected_after)} of the photos of the classes`;
}

function historyEntry(prediction) {
  const { time, label, probability } = prediction;
  const unknown = isUnknown(prediction);
  return element("li", {},
    element("time", { dateTime: time, textContent: new Date(time).toLocaleTimeString("en-GB") }),
    element("span", { className: unknown ? "unknown" : "", textContent: unknown ? "unknown" : label }),
    element("span", { className: "value", textContent: unknown ? `nearest: ${label}` : percent(probability) }));
}

addInputListeners();
addTrayListeners(classifyAgain);
addTeachListeners(classifyAgain, updateStatus);
for (;;) {
  await untilVisible();
  await updateStatus();
  await sleep(STATUS_INTERVAL);
}
