"use strict";
// One global for the whole page; every file adds to it. This one: building elements, words for numbers, failures.
const Copyscope = {};

(function (C) {
  // The page counts its own failures, so that a test (or a reader) can see them: <html data-errors="0">.
  const seen = document.documentElement.dataset;
  seen.errors = "0";
  C.failed = function (what) {
    seen.errors = String(Number(seen.errors) + 1);
    seen.lastError = String(what && what.message ? what.message : what);
    C.notice("Error in this page: " + seen.lastError, "error");
  };
  window.addEventListener("error", (event) => C.failed(event.message));
  window.addEventListener("unhandledrejection", (event) => C.failed(event.reason));
  document.addEventListener("securitypolicyviolation", (event) => {
    // CircuitsVis tries whether it may run WebAssembly and does without when it may not; the policy stays.
    if (event.blockedURI !== "wasm-eval") C.failed("blocked " + event.violatedDirective);
  });

  /** A message that stays until the next one of its kind; "" removes it. */
  C.notice = function (text, kind = "note") {
    const place = document.getElementById("notices");
    if (!place) return;
    let line = place.querySelector(`[data-kind="${kind}"]`);
    if (!text) {
      if (line) line.remove();
      return;
    }
    if (!line) {
      line = C.el("p", { class: "notice " + kind, "data-kind": kind });
      place.append(line);
    }
    if (line.textContent !== text) line.textContent = text;
  };

  C.byId = (id) => document.getElementById(id);

  /** An element; attributes that start with "on" are listeners, null ones are left out. Children are nodes or text. */
  C.el = (name, attributes = {}, ...children) => build(document.createElement(name), attributes, children);
  C.svg = (name, attributes = {}, ...children) =>
    build(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

  function build(element, attributes, children) {
    for (const [key, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else element.setAttribute(key, value === true ? "" : String(value));
    }
    for (const child of children.flat(Infinity)) if (child !== null && child !== undefined) element.append(child);
    return element;
  }

  /** Buttons that save something, folded under one word. */
  C.saveMenu = (label, ...buttons) => C.el("details", { class: "menu" }, C.el("summary", { "aria-label": label, title: label }, "Save"), C.el("span", { class: "saves", role: "group", "aria-label": label }, buttons));

  C.fill = (element, ...children) => element.replaceChildren(...children.flat(Infinity).filter((c) => c !== null && c !== undefined));

  /** Sets the options of a <select> only when they changed, so that an open menu stays open. groups: [[label, [[value, text]]]] */
  C.options = function (select, groups, value) {
    const key = JSON.stringify(groups);
    if (select.dataset.key !== key) {
      select.dataset.key = key;
      C.fill(
        select,
        groups.map(([label, entries]) => {
          const items = entries.map(([v, text]) => C.el("option", { value: v }, text));
          return label ? C.el("optgroup", { label }, items) : items;
        })
      );
    }
    select.value = value;
  };

  const comma = (text) => text.replace(/\B(?=(\d{3})+(?!\d))/g, ",");

  /** A number with a true minus, by default with three decimals, "< 0.001" where those say nothing; "–" for what is not there. */
  C.number = function (value, decimals = 3) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (typeof value !== "number") return String(value);
    const size = Math.abs(value);
    let text;
    if (Number.isInteger(value) && decimals === 3) text = comma(String(size));
    else if (size >= 1000) text = comma(size.toFixed(0));
    else if (size > 0 && size < 0.0005 && decimals === 3) return value < 0 ? "> −0.001" : "< 0.001";
    else text = size.toFixed(decimals);
    return (value < 0 && Number(text.replace(/,/g, "")) !== 0 ? "−" : "") + text;
  };
  /** The same with three digits however small: settings such as a learning rate, and ends of a scale. */
  C.precise = function (value) {
    if (typeof value !== "number" || value === 0 || Math.abs(value) >= 1) return C.number(value);
    return (value < 0 ? "−" : "") + String(Number(Math.abs(value).toPrecision(3)));
  };
  C.signed = function (value, decimals = 3) {
    const text = C.number(value, decimals);
    return (value > 0 && !/^[0.]+$|^</.test(text) ? "+" : "") + text;
  };

  /** A number to the digits that it means, for a file: as far as two digits of its standard error, else `digits` of its own. */
  C.meant = function (value, error, digits = 5) {
    if (typeof value !== "number" || !Number.isFinite(value)) return null;
    if (!(error > 0)) return Number(value.toPrecision(digits));
    return Number(value.toFixed(Math.max(0, Math.min(12, 1 - Math.floor(Math.log10(error))))));
  };

  /** A step as it is said: 0, 64, 1k, 12.5k, 143k, 2M. */
  C.stepLabel = function (step) {
    for (const [size, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
      if (step >= size) return String(Number((step / size).toPrecision(step < 10 * size ? 4 : 3))) + letter;
    return String(Math.round(step * 100) / 100);
  };

  /** The same beside a mark: whole numbers up to 10,000. */
  C.stepWord = (step) => (step < 10000 ? C.number(Math.round(step)) : C.stepLabel(step));

  /** A token as text one can see: spaces, line ends and tabs get a sign; all else is shown as it is. */
  C.tokenText = (token) => (token === "" ? "∅" : token.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥"));

  /** At most `most` characters, for labels. */
  C.shortText = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

  /** A colour of the style sheet, such as "ink". */
  C.color = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

  C.isNarrow = () => window.innerWidth < 640;

  /** Calls `make` again only when `key` differs from the last time for this element. */
  C.once = function (element, key, make) {
    if (element.copyscopeKey === key) return;
    element.copyscopeKey = key;
    make();
  };

  /** Sizes a canvas to `width` × `height` CSS pixels at the screen's resolution; returns its context in CSS pixels. */
  C.sized = function (canvas, width, height) {
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const [w, h] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
    if (canvas.width !== w) canvas.width = w;
    if (canvas.height !== h) canvas.height = h;
    canvas.style.width = width + "px";
    canvas.style.height = height + "px";
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    return context;
  };
})(Copyscope);
