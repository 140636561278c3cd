// Starts the model in a worker, checks it, and classifies photos and the camera's pictures. Needs no server.
// Follows the text of ../../server/static/dom.js and answers.js in the written file.

const MAX_TIMES = 200; // pictures that the median is over
const TOP = 3; // classes with a bar

function setText(target, text) {
  if (target.textContent !== text) target.textContent = text; // a screen reader announces every assignment
}

// --- the content of this file: blocks of gzip in base64 ---

async function readBlock(id) {
  const block = byId(id);
  const text = atob(block.textContent);
  block.remove(); // frees its memory
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// --- the worker ---

let worker = null;
const waiting = new Map(); // requests to the worker, by id
let lastId = 0;

async function startWorker() {
  // From a blob, and not from a file: such a worker inherits this page's Content-Security-Policy.
  const script = new Blob([await readBlock("worker-script")], { type: "text/javascript" });
  worker = new Worker(URL.createObjectURL(script));
  worker.onmessage = ({ data: { id, result, error } }) => {
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (error === undefined) resolve(result); else reject(new Error(error));
  };
  worker.onerror = () => fail("The browser cannot start the engine. Update the browser.");
}

// The answer of one of the worker's ACTIONS.
function ask(action, values, transfer = []) {
  return new Promise((resolve, reject) => {
    waiting.set(++lastId, { resolve, reject });
    worker.postMessage({ id: lastId, action, ...values }, transfer);
  });
}

// --- start: the page checks itself before it answers ---

const page = JSON.parse(byId("page-data").textContent);
const { contract, limits } = page;

async function start() {
  byId("model-name").textContent = contract.name;
  document.title = `${contract.name} · vgg-edge`;
  byId("progress-text").textContent = "Starting the engine …";
  await startWorker();
  const [script, wasm, model] = await Promise.all(["engine-script", "engine-wasm", "model-file"].map(readBlock));
  await ask("start", { script, wasm, model, inputSize: contract.input_size }, [wasm.buffer, model.buffer]);
  byId("progress-text").textContent = "Classifying the test picture …";
  const pixelError = await checkPixels();
  const answerError = await checkAnswer();
  showModel(pixelError, answerError);
  byId("progress").hidden = true;
  byId("main").hidden = false;
  setText(byId("state"), "ready");
}

function fail(text) {
  byId("progress").hidden = byId("main").hidden = true;
  byId("problem").hidden = false;
  setText(byId("problem-text"), text);
  setText(byId("state"), "stopped");
  byId("state").classList.add("bad");
}

// The mean difference between the pixels that this browser and the runtime make of one JPEG.
async function checkPixels() {
  const picture = new Blob([await readBlock("proof-picture")], { type: "image/jpeg" });
  const expected = await readBlock("proof-pixels");
  const pixels = await ask("readPixels", { picture });
  const error = expected.reduce((sum, value, at) => sum + Math.abs(value - pixels[at]), 0) / expected.length;
  if (pixels.length === expected.length && error <= limits.pixels) return error;
  throw new Error(`This browser reads pictures in another way: the pixels of the test picture differ by ${error.toFixed(1)} of 255 (limit ${limits.pixels}). Turn off its protection against fingerprinting for this page, or use another browser.`);
}

// The largest difference from the probabilities of the trained model; null when the model does not state them.
async function checkAnswer() {
  const pixels = await readBlock("golden-pixels");
  const { probabilities, known } = await ask("infer", { pixels });
  const advice = "Create the page again, or use another browser.";
  const values = known === null ? probabilities : [...probabilities, known];
  const sum = probabilities.reduce((total, value) => total + value, 0);
  if (!values.every((value) => value >= 0 && value <= 1) || Math.abs(sum - 1) > limits.sum) {
    throw new Error(`The model computes probabilities that cannot be right; their sum is ${sum.toFixed(3)}. ${advice}`);
  }
  if (!contract.golden) return null;
  const error = Math.max(...probabilities.map((value, at) => Math.abs(value - contract.golden.probabilities[at])));
  const knownError = known === null || contract.golden.known === null ? 0 : Math.abs(known - contract.golden.known);
  if (!(error <= limits.probability && knownError <= limits.known)) {
    throw new Error(`The test picture has another answer than in the trained model: probabilities differ by ${error.toFixed(3)} (limit ${limits.probability}), “known” by ${knownError.toFixed(3)} (limit ${limits.known}). ${advice}`);
  }
  return error;
}

// --- answers ---

const times = []; // of the newest pictures: { decode, infer }, in ms

// A Blob or an ImageBitmap → a prediction as the service answers it, without `source`.
async function classify(picture, transfer = []) {
  const { probabilities, known, decodeMs, ms: inferMs } = await ask("classify", { picture }, transfer);
  if (![...probabilities, known ?? 0].every(Number.isFinite)) throw new Error("the engine computed no number");
  const ms = { decode: decodeMs, infer: inferMs };
  times.push(ms);
  if (times.length > MAX_TIMES) times.shift();
  const top = contract.labels
    .map((label, at) => ({ label, probability: probabilities[at] }))
    .sort((one, other) => other.probability - one.probability)
    .slice(0, TOP);
  return { top, known: known === null ? null : known >= contract.thresholds.known, ms };
}

// --- photos ---

const pending = []; // cards of photos without an answer
let isClassifying = false;

async function addPhotos(files) {
  pending.push(...addCards(files));
  byId("answers").hidden = false;
  if (isClassifying) return;
  isClassifying = true;
  for (let card; (card = pending.shift());) showResult(card, await classifyPhoto(card.file));
  isClassifying = false;
}

// A prediction, or { source, error }.
async function classifyPhoto(file) {
  const source = file.name;
  try {
    const prediction = await classify(file);
    showSpeed();
    return { source, ...prediction };
  } catch (error) {
    return { source, error: error.message };
  }
}

// --- camera ---

const CAMERA_PROBLEMS = {
  NotAllowedError: "The browser does not allow this page to use the camera: allow it next to the address, then press Start camera.",
  NotFoundError: "The browser finds no camera: connect one, then press Start camera.",
  NotReadableError: "Another program uses the camera: close it, then press Start camera.",
};
let stream = null;

async function startCamera() {
  byId("camera-problem").textContent = "";
  if (!navigator.mediaDevices) {
    byId("camera-problem").textContent = "The browser gives the camera only to pages of https:// or of localhost, and some browsers to a page that is opened as a file.";
    return;
  }
  showCameraButton("stop-camera", "start-camera"); // stops the start too
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
    if (byId("stop-camera").hidden) return stopCamera(); // pressed while the browser asked
    stream.getVideoTracks()[0].onended = stopCamera;
    byId("camera-video").srcObject = stream;
    await byId("camera-video").play();
    byId("camera-label").textContent = "…";
    byId("camera-bars").replaceChildren();
    byId("camera").hidden = false;
    watchCamera(stream);
  } catch (error) {
    stopCamera();
    byId("camera-problem").textContent = CAMERA_PROBLEMS[error.name] ?? `The camera does not start: ${error.message}`;
  }
}

function stopCamera() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
  byId("camera").hidden = true;
  byId("camera-video").srcObject = null;
  showCameraButton("start-camera", "stop-camera");
  setText(byId("state"), "ready");
}

// The two buttons take one place, and the focus stays there.
function showCameraButton(shown, hidden) {
  const hadFocus = document.activeElement === byId(hidden);
  byId(hidden).hidden = true;
  byId(shown).hidden = false;
  if (hadFocus) byId(shown).focus();
}

// Classifies the newest picture again and again, until the camera stops.
async function watchCamera(watched) {
  const shown = { label: "", time: 0 };
  setText(byId("state"), "live");
  for (let previous = performance.now(); stream === watched;) {
    await untilVisible();
    try {
      const picture = await createImageBitmap(byId("camera-video"));
      const answer = await classify(picture, [picture]);
      if (stream !== watched) return;
      const now = performance.now();
      showCameraAnswer(answer, 1000 / (now - previous), shown);
      previous = now;
    } catch (error) {
      if (stream !== watched) return;
      stopCamera();
      byId("camera-problem").textContent = `The camera stopped: ${error.message}`;
    }
    await new Promise(requestAnimationFrame);
  }
}

function showCameraAnswer(answer, rate, shown) {
  if (!showCameraLabel(answer, shown)) return;
  showBars(byId("camera-bars"), answer);
  byId("camera-rate").textContent = `${rate.toFixed(1)} pictures/s · ${milliseconds(answer.ms.decode + answer.ms.infer)}`;
  showSpeed();
}

// --- model and speed ---

function showModel(pixelError, answerError) {
  const differs = answerError === null ? "no expected answer in this model" : `probabilities differ by ${answerError.toFixed(3)} from the trained model`;
  const [height, width] = contract.input_size;
  byId("labels").replaceChildren(...contract.labels.map((label) => element("li", { textContent: label })));
  showPairs(byId("model"), [
    ["file", `${page.file.name}, ${(page.file.bytes / 1e6).toFixed(1)} MB`],
    ["input", `${width} × ${height} pixels`],
    ["created", `${longDate(contract.created)}${contract.synthetic ? ", from drawn pictures" : ""}`],
    ["sha256", `${page.file.sha256.slice(0, 16)}…`],
    ["test picture", `passed: ${differs}; pixels differ by ${pixelError.toFixed(1)} of 255 from the runtime`],
  ]);
}

const median = (values) => [...values].sort((one, other) => one - other)[values.length >> 1];

function showSpeed() {
  byId("speed-panel").hidden = false;
  const columns = { picture: (time) => time.decode + time.infer, decoding: (time) => time.decode, inference: (time) => time.infer };
  showPairs(byId("speed"), Object.entries(columns).map(([name, value]) => [name, milliseconds(median(times.map(value)))]));
  byId("speed-note").textContent = `${page.engine} on 1 thread; ${times.length === 1 ? "1 picture" : `median of the newest ${times.length} pictures`}`;
}

// --- input ---

function addInputListeners() {
  byId("choose-photos").onclick = () => byId("photo-files").click();
  byId("photo-files").onchange = ({ target }) => {
    addPhotos([...target.files]);
    target.value = ""; // so that choosing the same photo again is a change
  };
  byId("start-camera").onclick = startCamera;
  byId("stop-camera").onclick = stopCamera;
  addDropListeners(addPhotos);
}

start().then(addInputListeners, (error) => fail(error.message));
