// Helpers for the elements of the page, and for waiting.

export const byId = (id) => document.getElementById(id);
export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export function element(name, properties = {}, ...children) {
  const created = Object.assign(document.createElement(name), properties);
  created.append(...children);
  return created;
}

// Not the property `disabled`: a button would lose the focus when it is disabled.
export const setDisabled = (button, disabled) => button.setAttribute("aria-disabled", disabled);
export const isDisabled = (button) => button.getAttribute("aria-disabled") === "true";

export const countPhotos = (count) => (count === 1 ? "1 photo" : `${count} photos`);
