"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const WORDS = DATA.words;
const state = { language: (navigator.language || "en").startsWith("zh") ? "zh" : "en", theme: "light" };

/** The words for a key in the language of the page; the key itself where there are none. */
function say(key) {
  const found = Object.hasOwn(WORDS, key) ? WORDS[key] : null;
  return found ? found[state.language] : key;
}

/** Make an element; texts are only ever set as text. */
function el(tag, attributes = {}, ...children) {
  const node = tag === "svg" || SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined).map((child) => (child instanceof Node ? child : String(child))));
  return node;
}
const SVG = new Set(["path", "line", "text", "rect", "g", "title", "circle"]);

/** A number as a person reads it. */
function show(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size !== 0 && (size < 0.001 || size >= 1e5) ? value.toExponential(2) : value.toFixed(digits);
}

const sections = [];
/** Register what draws one section of the page; it is called again when the language changes. */
function section(draw) { sections.push(draw); }

function setTheme(theme) {
  state.theme = theme;
  document.documentElement.dataset.theme = theme;
}

function draw() {
  document.documentElement.lang = state.language;
  const root = document.getElementById("page");
  root.replaceChildren(
    el("header", {},
      el("h1", {}, DATA.title),
      el("span", { class: "soft" }, DATA.made),
      el("button", { id: "language", onclick: () => { state.language = state.language === "en" ? "zh" : "en"; draw(); } },
        state.language === "en" ? "中文" : "English"),
      el("button", { id: "theme", onclick: () => { setTheme(state.theme === "dark" ? "light" : "dark"); draw(); } },
        say(state.theme === "dark" ? "light" : "dark"))),
    DATA.summary ? el("p", { id: "summary" }, DATA.summary[state.language]) : "",
    ...sections.flatMap((part) => part()).filter(Boolean));
}

function start() {
  setTheme(window.matchMedia && window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  draw();
}
