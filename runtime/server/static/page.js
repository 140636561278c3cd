// The page's three jobs: show the camera's newest frame with its answer, ask for photos, tell of model and speed.

const at = (id) => document.getElementById(id);
const STATUS_EVERY = 2000; // ms
const KEEP = 12; // answered photos
const FRAME_EVERY = 40; // ms; more frames a second than that nobody sees

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const visible = () => document.visibilityState === "visible"
  ? Promise.resolve()
  : new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

let maxBytes = Infinity;
let signedIn = null; // resolves once the token was taken

// --- the service ---

async function ask(path, options) {
  const answer = await fetch(path, { cache: "no-store", ...options });
  if (answer.status === 401 && path !== "/login") {
    await signIn();
    return ask(path, options);
  }
  return answer;
}

function signIn() {
  signedIn ??= (async () => {
    const given = new URLSearchParams(location.hash.slice(1)).get("token");
    history.replaceState(null, "", location.pathname); // it stays neither in the address nor in the history
    if (given && (await login(given)) === "") return;
    at("main").hidden = at("footer").hidden = true;
    at("login").hidden = false;
    at("token").focus();
    await new Promise((resolve) => {
      at("login").onsubmit = async (event) => {
        event.preventDefault();
        const error = await login(at("token").value);
        at("login-error").textContent = error;
        if (error) return at("token").select();
        at("token").value = "";
        at("login").hidden = true;
        resolve();
      };
    });
  })().finally(() => { signedIn = null; });
  return signedIn;
}

async function login(token) {
  try {
    const answer = await fetch("/login", { method: "POST", body: JSON.stringify({ token }) });
    return answer.ok ? "" : answer.status === 401 ? "That is not the token." : (await answer.json()).error;
  } catch {
    return "The service does not answer.";
  }
}

// --- an answer in words, the same for a frame and a photo ---

function showLabel(target, answer) {
  const unknown = answer.known === false; // null: the model does not tell
  target.classList.toggle("unknown", unknown);
  const { label, probability } = answer.top[0];
  target.replaceChildren(...(unknown
    ? [element("span", { textContent: "unknown" }), element("span", { className: "nearest", textContent: `nearest: ${label} ${percent(probability)}` })]
    : [element("span", { textContent: label }), element("span", { className: "percent", textContent: percent(probability) })]));
}

function showBars(target, answer) {
  target.classList.toggle("unknown", answer.known === false);
  while (target.children.length > answer.top.length) target.lastChild.remove();
  answer.top.forEach(({ label, probability }, row) => {
    const bar = target.children[row] ?? target.appendChild(element("li", {}, element("span"), element("span", { className: "value" })));
    bar.style.setProperty("--share", `${100 * probability}%`);
    bar.children[0].textContent = label;
    bar.children[1].textContent = percent(probability);
  });
}

// --- the camera ---

async function watch() {
  let shown = 0, told = "";
  at("live").hidden = false;
  for (;;) {
    await visible();
    const began = performance.now();
    try {
      const answer = await ask(`/live.jpg?after=${shown}`);
      if (answer.status === 200) {
        const sight = JSON.parse(answer.headers.get("Sight"));
        await showPicture(await answer.blob());
        shown = sight.frame;
        const words = sight.known === false ? "unknown" : sight.label;
        if (words !== told) at("live-said").textContent = words; // a screen reader is told of changes alone
        if (words !== told || performance.now() - (watch.labelled ?? 0) > 300) { // a percentage is to be readable
          showLabel(at("live-label"), sight);
          watch.labelled = performance.now();
          told = words;
        }
        showBars(at("live-bars"), sight);
        at("figures").textContent = `${sight.fps.toFixed(1)} frames/s · ${Math.round(sight.age_ms)} ms old`;
      } else if (answer.status !== 204) {
        await sleep(1000 * (Number(answer.headers.get("Retry-After")) || 1));
      }
    } catch {
      await sleep(1000); // the service is away: /status says so
    }
    await sleep(Math.max(0, FRAME_EVERY - (performance.now() - began)));
  }
}

async function showPicture(blob) {
  const picture = at("picture"), old = picture.src;
  picture.src = URL.createObjectURL(blob);
  picture.hidden = false;
  try {
    await picture.decode();
  } finally {
    if (old) URL.revokeObjectURL(old);
  }
}

// --- photos ---

const waiting = [];
let working = false;

function take(files) {
  for (const file of files) {
    const words = element("p", { className: "label", textContent: "…" });
    const photo = element("img", { className: "photo", alt: `Your photo ${file.name}`, src: URL.createObjectURL(file) });
    photo.onerror = () => photo.replaceWith(element("div", { className: "photo", textContent: "no preview" }));
    const card = element("li", { className: "answer waiting" }, photo, element("div", { className: "words" }, words));
    card.forget = () => URL.revokeObjectURL(photo.src);
    at("answers").prepend(card);
    waiting.push({ file, card });
  }
  for (const old of [...at("answers").children].slice(KEEP)) {
    if (old.classList.contains("waiting")) continue;
    old.forget();
    old.remove();
  }
  if (!working) work();
}

async function work() {
  working = true;
  for (let next; (next = waiting.shift());) {
    const { file, card } = next;
    const answer = await classify(file);
    card.classList.remove("waiting");
    const [photo, words] = [card.children[0], card.children[1]];
    const label = words.firstChild;
    if (answer.error) {
      card.classList.add("failed");
      label.textContent = "No answer";
      words.append(element("p", { className: "small", textContent: `${answer.source}: ${answer.error}` }));
    } else {
      const bars = element("ol", { className: "bars" });
      showLabel(label, answer);
      showBars(bars, answer);
      const took = `${answer.ms.decode} ms to decode, ${answer.ms.infer} ms to infer`;
      const note = answer.converted ? ", converted by the browser" : "";
      words.append(bars, element("p", { className: "small", textContent: `${answer.source}${note} · ${took}` }));
    }
    photo.alt = `${photo.alt}: ${label.textContent}`;
    at("said").textContent = `${answer.source}: ${[...label.childNodes].map((node) => node.textContent).join(" ")}${answer.error ? ` ${answer.error}` : ""}`;
  }
  working = false;
  status();
}

async function classify(file) {
  const source = file.name || "photo";
  if (file.size > maxBytes) {
    return { source, error: `is over ${maxBytes / 1e6} MB, the most that is taken here` };
  }
  for (;;) {
    try {
      const form = new FormData();
      form.append("file", file, source);
      const answer = await ask("/classify", { method: "POST", body: form });
      if (answer.status === 503) {
        await sleep(1000 * (Number(answer.headers.get("Retry-After")) || 1));
        continue;
      }
      const told = await answer.json();
      if (answer.status === 415) {
        const converted = await convert(file);
        if (converted) return { ...(await classify(converted)), source, converted: true };
      }
      return told;
    } catch {
      return { source, error: "the service does not answer" };
    }
  }
}

// A kind that the service cannot read, such as a phone's HEIC without pillow-heif there: the browser may be able to.
async function convert(file) {
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

function listen() {
  at("choose").onclick = () => at("file").click();
  at("take").onclick = () => at("camera-file").click();
  for (const input of [at("file"), at("camera-file")]) {
    input.onchange = () => {
      take([...input.files]);
      input.value = ""; // so that the same photo can be chosen again
    };
  }
  let depth = 0; // dragenter and dragleave come for every element on the way
  const over = (change) => {
    depth = change === 0 ? 0 : depth + change;
    document.body.classList.toggle("over", depth > 0);
  };
  document.addEventListener("dragenter", (event) => { event.preventDefault(); over(1); });
  document.addEventListener("dragleave", () => over(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    over(0);
    take([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length) take(files);
  });
}

// --- model, speed, history ---

let watching = false;

async function status() {
  let told;
  try {
    const answer = await ask("/status");
    if (!answer.ok) throw new Error((await answer.json()).error);
    told = await answer.json();
  } catch {
    tellState("service away", true);
    return;
  }
  maxBytes = told.max_bytes;
  at("main").hidden = at("footer").hidden = false;
  at("name").textContent = told.model.name;
  document.title = `${told.model.name} · vgg-edge`;
  at("curl").textContent = `curl -F file=@photo.jpg ${location.origin}/classify`;
  tellCamera(told.camera);
  tellSpeed(told);
  tellModel(told);
  at("seen").hidden = told.camera === null;
  at("history").replaceChildren(...told.history.slice(-8).reverse().map(seen));
}

function tellState(words, bad) {
  const state = at("state");
  state.classList.toggle("bad", bad);
  if (state.textContent !== words) state.textContent = words;
}

function tellCamera(camera) {
  document.body.classList.toggle("alone", camera === null);
  if (camera === null) return tellState("ready", false);
  if (!watching) {
    watching = true;
    watch();
  }
  const problem = camera.problem || (camera.fps === null ? "Waiting for the camera …" : "");
  at("problem").textContent = problem;
  tellState(camera.problem ? "camera away" : problem ? "starting" : "live", Boolean(camera.problem));
}

function tellSpeed({ speed, camera, engine, threads }) {
  const ms = (value) => (value === null ? "–" : `${value < 100 ? value : Math.round(value)} ms`);
  const tiles = [["photo, median", ms(speed.p50_ms)], ["photo, p95", ms(speed.p95_ms)], ["decoding", ms(speed.decode_ms)], ["engine", ms(speed.infer_ms)]];
  if (camera && camera.fps !== null) tiles.unshift(["frames/s", camera.fps.toFixed(1)], ["frame’s age", `${Math.round(camera.age_ms)} ms`]);
  list(at("speed"), tiles);
  const photos = speed.photos === 1 ? "1 photo" : `${speed.photos.toLocaleString("en")} photos`;
  at("speed-note").textContent = `${engine}, ${threads} ${threads === 1 ? "thread" : "threads"}; ${photos} answered since the start`;
}

function tellModel({ model, news }) {
  const labels = model.labels.map((label) => element("li", { textContent: label }));
  if (at("labels").textContent !== model.labels.join("")) at("labels").replaceChildren(...labels);
  const facts = [
    ["file", `${model.file}, ${(model.bytes / 1e6).toFixed(1)} MB`],
    ["input", `${model.input[1]} × ${model.input[0]} pixels`],
    ["made", `${new Date(model.created).toLocaleString("en", { dateStyle: "long" })}${model.synthetic ? ", from drawn pictures" : ""}`],
    ["sha256", `${model.sha256.slice(0, 16)}…`],
  ];
  if (model.precision) facts.splice(1, 0, ["precision", model.precision]);
  const { parity } = model;
  if (parity?.top1 !== undefined) facts.push(["right", `${percent(parity.top1)} of ${parity.n} test photos`]);
  if (parity?.agreement !== undefined) {
    const moved = parity.max_dp === undefined ? "" : `; no probability is off by more than ${parity.max_dp.toFixed(3)}`;
    facts.push(["parity", `answers like the trained model on ${percent(parity.agreement)} of them${moved} (${parity.engine})`]);
  }
  list(at("model"), facts);
  at("news").textContent = news;
}

function list(target, pairs) {
  const key = JSON.stringify(pairs);
  if (target.key === key) return; // a reader's place in it is kept
  target.key = key;
  target.replaceChildren(...pairs.map(([term, text]) => element("div", {}, element("dt", { textContent: term }), element("dd", { textContent: text }))));
}

function seen({ time, label, probability, known }) {
  const when = new Date(time);
  return element("li", {},
    element("time", { dateTime: time, textContent: when.toLocaleTimeString("en-GB") }),
    element("span", { className: known === false ? "unknown" : "", textContent: known === false ? "unknown" : label }),
    element("span", { className: "value", textContent: known === false ? `nearest: ${label}` : percent(probability) }));
}

listen();
for (;;) {
  await visible();
  await status();
  await sleep(STATUS_EVERY);
}
