// Helpers for the elements of a page, for waiting, and for photos that a person gives it.

export const byId = (id) => document.getElementById(id);
export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
export const untilVisible = () => document.visibilityState === "visible"
  ? Promise.resolve()
  : new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
export const percent = (share) => `${(100 * share).toFixed(1)} %`;

export function element(name, properties = {}, ...children) {
  const created = Object.assign(document.createElement(name), properties);
  created.append(...children);
  return created;
}

// Not the property `disabled`: a button would lose the focus when it is disabled.
export const setDisabled = (button, disabled) => button.setAttribute("aria-disabled", disabled);
export const isDisabled = (button) => button.getAttribute("aria-disabled") === "true";

export const longDate = (time) => new Date(time).toLocaleDateString("en", { dateStyle: "long" });
export const pluralize = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

// Calls addPhotos with the files that are dropped on the page or pasted.
export function addDropListeners(addPhotos) {
  let depth = 0; // dragenter and dragleave fire for every nested element
  const setDepth = (value) => {
    depth = value;
    document.body.classList.toggle("dragging", depth > 0);
  };
  document.addEventListener("dragenter", (event) => { event.preventDefault(); setDepth(depth + 1); });
  document.addEventListener("dragleave", () => setDepth(depth - 1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    setDepth(0);
    addPhotos([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length) addPhotos(files);
  });
}
