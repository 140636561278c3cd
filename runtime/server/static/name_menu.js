// The menu that names a picture: a button for each class, one for "none of these", and a field for a new name.

import { element, isDisabled, setDisabled } from "./dom.js";

const NONE = "none"; // the label of pictures that show none of the classes
const NUMBERED = 9; // classes with a digit as their key
const MAX_NAME_LENGTH = 60; // the service refuses longer new names

let classes = [];
const openMenus = new Set();

// Shows the classes in all menus, with the names that wait to be learned.
export function setClasses(labels) {
  if (JSON.stringify(labels) === JSON.stringify(classes)) return;
  classes = labels;
  for (const menu of openMenus) menu.showClasses();
}

// The name of a label on the page.
export const nameOf = (label) => (label === NONE ? "none of these" : label);

// Creates a menu. `onName` gets the chosen label and returns an error message, or ""; `onClose`, if there is
// one, is called for Escape. `more` are buttons behind the classes, made by makeOption.
export function makeNameMenu({ title, onName, onClose, more = [] }) {
  const menu = element("div", { className: "name-menu" });
  menu.setAttribute("role", "group");
  menu.setAttribute("aria-label", title);
  const options = element("div", { className: "name-options" });
  const error = element("p", { className: "error" });
  error.setAttribute("role", "alert");
  const choose = (label) => chooseName(menu, error, label, onName);
  const form = makeNameForm(choose);
  menu.append(options, form, error);
  menu.setTitle = (text) => menu.setAttribute("aria-label", text);
  menu.showClasses = () => {
    const hadFocus = options.contains(document.activeElement);
    options.replaceChildren(...makeOptions(choose, form), ...more);
    if (hadFocus) options.firstChild.focus();
  };
  menu.showClasses();
  menu.onkeydown = (event) => pressKey(event, menu, onClose);
  openMenus.add(menu);
  return menu;
}

export function closeMenu(menu) {
  openMenus.delete(menu);
  menu.remove();
}

export function makeOption(keys, text, onClick) {
  const button = element("button", { type: "button", className: "name-option" });
  if (keys.length) {
    button.append(element("kbd", { textContent: keys[0].toUpperCase() }));
    button.setAttribute("aria-keyshortcuts", keys.join(" "));
  }
  button.append(element("span", { textContent: text }));
  button.keys = keys;
  button.onclick = onClick;
  return button;
}

function makeOptions(choose, form) {
  const buttons = classes.map((label, index) => makeOption(index < NUMBERED ? [String(index + 1)] : [], label, () => choose(label)));
  buttons.push(makeOption(["0", "n"], nameOf(NONE), () => choose(NONE)));
  const newName = makeOption(["+"], "new name", () => {
    form.hidden = false;
    form.firstChild.focus();
  });
  buttons.at(-1).classList.add("other");
  newName.classList.add("other");
  return [...buttons, newName];
}

function makeNameForm(choose) {
  const input = element("input", { type: "text", maxLength: MAX_NAME_LENGTH, placeholder: "for example peony", autocomplete: "off", required: true });
  input.setAttribute("aria-label", "New name");
  const form = element("form", { className: "row name-form", hidden: true }, input, element("button", { textContent: "Use this name" }));
  form.onsubmit = async (event) => {
    event.preventDefault();
    if (!input.value.trim() || !(await choose(input.value.trim()))) return;
    input.value = "";
    form.hidden = true; // which takes the focus from it
    if (document.activeElement === document.body) form.previousSibling.firstChild.focus();
  };
  return form;
}

// Returns whether the name was accepted.
async function chooseName(menu, error, label, onName) {
  if (isDisabled(menu)) return false; // the answer to an earlier key is on its way
  setDisabled(menu, true);
  error.textContent = await onName(label);
  setDisabled(menu, false);
  return !error.textContent;
}

function pressKey(event, menu, onClose) {
  const { key, target } = event;
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (key === "Escape" && onClose) onClose();
  else {
    if (target instanceof HTMLInputElement) return;
    const button = [...menu.querySelectorAll(".name-option")].find(({ keys }) => keys.includes(key.toLowerCase()));
    if (!button) return;
    button.click();
  }
  event.preventDefault();
}
